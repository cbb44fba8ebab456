"""The codecs of the update pipeline: what they send, what the server restores, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim import plugins
from fedsim.array_layout import ArrayType, Encoding, Layout
from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.errors import BadInput
from fedsim.learning.block_array import BlockArray
from fedsim.learning.chunk import training_bytes
from fedsim.learning.examples import DataSet
from fedsim.learning.randomness import generator
from fedsim.learning.simulate import simulate
from fedsim.learning.strategies import make_strategy
from fedsim.learning.transforms import Pipeline, Sending, Stage, Transform, make_pipeline
from fedsim.learning.transforms.topk import largest
from fedsim.settings import TaskSettings, parse_settings
from fedsim.spool.allowlist import Allowlist
from fedsim.spool.npy import write_array
from fedsim.spool.updates import check_update, open_arrays, update_path, write_update
from fedsim.update import PARAMETERS, Update
from fedsim.web.catalogue import Catalogue, check_settings
from fedsim.web.errors import Fault
from fedsim.web.forms import form_values, settings_from

SIZE = 3001
CONTROL = "control"
PLAIN = Layout({PARAMETERS: (SIZE,), CONTROL: (SIZE,)})
CODECS = ("difference", "float16", "bfloat16", "int8", "topk")

pytestmark = pytest.mark.usefixtures("deterministic_torch")


def received() -> np.ndarray:
    return np.random.default_rng(1).normal(size=SIZE).astype(np.float32)


def update(seed: int = 2, round_number: int = 3, client: int | None = 4) -> Update:
    rng = np.random.default_rng(seed)
    arrays = {
        PARAMETERS: received() + rng.normal(scale=0.01, size=SIZE).astype(np.float32),
        CONTROL: rng.normal(size=SIZE).astype(np.float32),
    }
    return Update(base_round=round_number, chunk=5, client=client, num_examples=8).with_arrays(arrays)


def codec(name: str, **options: Any) -> Transform:
    made: Transform = plugins.make(plugins.TRANSFORMS, name, options)
    return made


def through(*transforms: Transform, given: Update | None = None, seed: int = 7) -> tuple[dict, dict]:
    """What is sent, through a file's vector, and what the server restores of it."""
    pipeline = Pipeline(transforms, seed)
    layout = pipeline.layout(PLAIN)
    kept = pipeline.kept_layout(PLAIN)
    zeros = kept.views(np.zeros(kept.size, np.float32))
    sent = pipeline.on_client(Stage.UPLOAD, given or update(), received(), zeros)
    arrays = layout.views(layout.flatten(sent.arrays))
    layout.check(arrays)
    restored = pipeline.on_server(update().with_arrays(arrays), received())
    return arrays, {name: np.asarray(array) for name, array in restored.arrays.items()}


# ---------------------------------------------------------------- each codec against a few lines of its own


def test_difference_sends_what_has_changed_and_nothing_else_of_the_strategy() -> None:
    sent, restored = through(codec("difference"))
    given = update().arrays
    assert np.array_equal(sent[PARAMETERS], given[PARAMETERS] - received())
    assert np.array_equal(sent[CONTROL], given[CONTROL])
    assert np.array_equal(restored[PARAMETERS], received() + (given[PARAMETERS] - received()))
    assert np.allclose(restored[PARAMETERS], given[PARAMETERS], atol=1e-6)


def test_float16_is_numpys_and_saturates() -> None:
    given = update()
    given.arrays[CONTROL][:3] = [1e6, -1e6, 1e-30]
    sent, restored = through(codec("float16"), given=given)
    for name, array in given.arrays.items():
        expected = np.clip(array, -65504, 65504).astype(np.float16)
        assert np.array_equal(sent[name], expected)
        assert np.array_equal(restored[name], expected.astype(np.float32))


def test_bfloat16_is_torchs_and_saturates() -> None:
    import torch  # noqa: PLC0415 - for comparison

    given = update()
    most = np.finfo(np.float32).max
    given.arrays[CONTROL][:6] = [most, -most, 1e-40, -0.0, 1 + 2**-8, 1 + 3 * 2**-8]
    sent, restored = through(codec("bfloat16"), given=given)
    for name, array in given.arrays.items():
        expected = torch.from_numpy(array).to(torch.bfloat16).to(torch.float32).numpy()
        largest_finite = np.float32(torch.finfo(torch.bfloat16).max)
        assert np.array_equal(restored[name], np.clip(expected, -largest_finite, largest_finite))
        assert sent[name].dtype == np.uint16
    assert np.isfinite(restored[CONTROL]).all()


@pytest.mark.parametrize("block_size", [8, 1000, 1024, 5000])
def test_int8_is_the_scale_times_a_level_next_to_the_number_drawn_from_seed_round_and_client(block_size: int) -> None:
    sent, restored = through(codec("int8", block_size=block_size))
    for number, (name, array) in enumerate(update().arrays.items()):
        drawn = generator(7, "int8", 3, 1, 4, number).random(SIZE, np.float32)
        for start in range(0, SIZE, block_size):
            here = slice(start, start + block_size)
            scale = np.abs(array[here]).max() / np.float32(127)
            levels = np.clip(np.floor(array[here] / scale + drawn[here]), -127, 127)
            assert np.array_equal(sent[name][here], levels.astype(np.int8))
            assert np.allclose(restored[name][here], levels * scale, rtol=1e-6)
            assert (np.abs(restored[name][here] - array[here]) <= scale * 1.0001).all()


def test_int8_rounds_to_the_number_itself_in_the_mean_and_zeros_stay_zeros() -> None:
    given = update()
    given.arrays[CONTROL][100:1300] = 0
    restored = [through(codec("int8", block_size=64), given=given, seed=seed)[1] for seed in range(200)]
    mean = np.mean([each[CONTROL] for each in restored], axis=0)
    step = np.abs(given.arrays[CONTROL]).max() / 127
    assert np.abs(mean - given.arrays[CONTROL]).max() < 5 * step / np.sqrt(200)
    assert all((each[CONTROL][100:1300] == 0).all() for each in restored)


def test_int8_draws_anew_for_each_seed_round_sender_and_array() -> None:
    def levels(seed: int = 7, **changed: Any) -> bytes:
        return bytes(through(codec("int8"), given=update(**changed), seed=seed)[0][PARAMETERS])

    assert levels() == levels()
    assert len({levels(), levels(seed=8), levels(round_number=4), levels(client=None), levels(client=5)}) == 5


@pytest.mark.parametrize("fraction", [1e-6, 0.01, 0.3, 1.0])
def test_topk_sends_the_largest_of_update_and_residual_and_keeps_the_rest(fraction: float) -> None:
    transform = codec("topk", fraction=fraction)
    layout, kept_layout = transform.layout(PLAIN), transform.kept_layout(PLAIN)
    residual = dict.fromkeys((PARAMETERS, CONTROL), np.zeros(SIZE, np.float32))
    number = max(1, int(fraction * SIZE))
    for seed in range(3):
        given = update(seed)
        kept = {name + ".residual": array for name, array in residual.items()}
        sent = transform.on_client(given, Sending(received(), 7, kept))
        layout.check(layout.views(layout.flatten(sent.arrays)))
        kept_layout.check_shapes(sent.client_state)
        restored = transform.on_server(sent, received()).arrays
        for name, array in given.arrays.items():
            total = array + residual[name]
            chosen = np.sort(np.argsort(-np.abs(total), kind="stable")[:number])
            expected = np.zeros(SIZE, np.float32)
            expected[chosen] = total[chosen]
            assert np.array_equal(sent.arrays[name + ".index"], chosen)
            assert np.array_equal(np.asarray(restored[name]), expected)
            residual[name] = total - expected
            assert np.array_equal(sent.client_state[name + ".residual"], residual[name])


def test_without_error_feedback_nothing_is_kept() -> None:
    transform = codec("topk", error_feedback="false")
    assert transform.kept_layout(PLAIN).shapes == {}
    sent = transform.on_client(update(), Sending(received()))
    assert sent.client_state == {}


@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-38, 3e38, 0.5, 0.50000006]), min_size=1),
    share=st.floats(0, 1),
)
def test_the_largest_are_found_with_ties_and_zeros_of_both_signs(values: list[float], share: float) -> None:
    vector = np.array(values, np.float32)
    number = max(1, int(share * len(values)))
    expected = np.sort(np.argsort(-np.abs(vector), kind="stable")[:number])
    assert np.array_equal(largest(vector, number), expected)


def test_the_largest_are_found_over_several_blocks() -> None:
    vector = np.random.default_rng(0).normal(size=600_000).astype(np.float32)
    vector[::7] = 2.5  # ties over all blocks
    for number in (1, 1000, 90_000, 600_000):
        expected = np.sort(np.argsort(-np.abs(vector), kind="stable")[:number])
        assert np.array_equal(largest(vector, number), expected)


def test_codecs_combine_in_their_order() -> None:
    sent, restored = through(codec("difference"), codec("topk", fraction=0.1), codec("int8", block_size=64))
    assert sent[PARAMETERS].dtype == np.int8
    assert sent[PARAMETERS].shape == (300,)
    change, given = restored[PARAMETERS] - received(), update().arrays[PARAMETERS] - received()
    chosen = sent[PARAMETERS + ".index"]
    assert np.count_nonzero(change) <= 300
    assert np.abs(change[chosen] - given[chosen]).max() < 2 * np.abs(given).max() / 127
    assert np.abs(np.delete(change, chosen)).max() < 1e-6


# ---------------------------------------------------------------- the bytes


@pytest.mark.parametrize(
    ("names", "options", "most"),
    [
        (("difference",), {}, 1.0),
        (("float16",), {}, 0.5),
        (("difference", "bfloat16"), {}, 0.5),
        (("difference", "int8"), {}, 0.252),
        (("difference", "topk"), {"topk": {"fraction": 0.05}}, 0.1),
        (("difference", "topk", "float16"), {"topk": {"fraction": 0.05}}, 0.076),
        (("difference", "topk", "int8"), {"topk": {"fraction": 0.05}}, 0.064),
    ],
)
def test_a_file_is_as_small_as_its_codecs_promise(tmp_path: Path, names: tuple, options: dict, most: float) -> None:
    transforms = [codec(name, **options.get(name, {})) for name in names]
    pipeline = Pipeline(transforms, 1)
    size = 100_000
    plain = Layout({PARAMETERS: (size,)})
    layout, kept = pipeline.layout(plain), pipeline.kept_layout(plain)
    base = np.ones(size, np.float32)
    arrays = {PARAMETERS: np.random.default_rng(0).normal(size=size).astype(np.float32)}
    given = Update(base_round=1, num_examples=1).with_arrays(arrays)
    sent = pipeline.on_client(Stage.UPLOAD, given, base, kept.views(np.zeros(kept.size, np.float32)))
    written = write_update(tmp_path, sent, layout)
    header = 200
    assert written.size <= most * 4 * size + header
    path = update_path(tmp_path, written)
    check_update(path, layout)
    opened = open_arrays(path, layout)
    assert all(np.array_equal(opened[name], np.asarray(array)) for name, array in sent.arrays.items())


def test_memory_for_a_codec_is_part_of_what_a_worker_needs() -> None:
    def needed(**chosen: Any) -> int:
        settings, _ = parse_settings(chosen)
        strategy = make_strategy(settings)
        return training_bytes(1_000_000, strategy, 1, make_pipeline(settings, strategy))

    plain = needed()
    assert plain == 8_000_000
    assert needed(transforms="float16") == plain + 2_000_000
    assert needed(transforms="difference,topk") == plain + 400_000 + 4_000_000


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("chosen", "problem"),
    [
        ({"transforms": "topk"}, "topk needs difference before it"),
        ({"transforms": "topk,difference"}, "topk needs difference before it"),
        ({"transforms": "int8,difference"}, "difference cannot work on what int8 has encoded: list difference before"),
        ({"transforms": "difference,int8,topk"}, "topk cannot work on what int8 has encoded: list topk before int8"),
        ({"transforms": "int8,float16"}, "float16 cannot work on what int8 has encoded"),
        ({"transforms": "bfloat16,int8"}, "int8 cannot work on what bfloat16 has encoded"),
        ({"transforms": "difference,topk", "strategy": "median"}, "median and topk cannot be combined: most changes"),
        ({"transforms": "difference,topk", "aggregation": "median"}, "cannot be combined: most changes"),
        (
            {"transforms": "difference,topk", "strategy": "scaffold", "transforms_options.topk.error_feedback": False},
            "scaffold and topk cannot be combined: its clients count on all",
        ),
    ],
)
def test_what_cannot_work_is_refused_at_submission_with_the_reason(chosen: dict[str, Any], problem: str) -> None:
    with pytest.raises(Fault) as caught:
        check_settings(chosen, Catalogue((), {}))
    assert problem in str(caught.value.problems["transforms"])


@pytest.mark.parametrize(
    "chosen",
    [
        {"transforms": "difference,topk,int8,identity"},
        {"transforms": "difference,int8,identity", "strategy": "median"},
        {"transforms": "difference,topk", "strategy": "scaffold"},
        {"transforms": "difference,topk,float16", "server_step": "fedavgm"},
        {"transforms": "bfloat16", "strategy": "scaffold"},
    ],
)
def test_what_can_work_is_accepted(chosen: dict[str, Any]) -> None:
    settings, _ = check_settings(chosen, Catalogue((), {}))
    assert settings.transforms


@pytest.mark.parametrize("given", [False, "false"])
def test_a_switch_can_be_given_by_its_dotted_name_as_a_form_or_the_api_does(given: object) -> None:
    settings, _ = parse_settings({"transforms": "difference,topk", "transforms_options.topk.error_feedback": given})
    assert settings.transforms_options["topk"] == {"fraction": 0.05, "error_feedback": False}
    again, _ = parse_settings(settings_from(form_values(settings)))
    assert again == settings


def test_options_beyond_their_limits_are_refused() -> None:
    for name, options in (("topk", {"fraction": 0}), ("topk", {"fraction": 1.5}), ("int8", {"block_size": 4})):
        with pytest.raises(BadInput, match=f"options of the transform {name}"):
            codec(name, **options)


LAYOUT = Pipeline([codec("difference"), codec("topk", fraction=0.1), codec("int8")], 1).layout(PLAIN)


def sent_arrays() -> dict[str, np.ndarray]:
    sent, _ = through(codec("difference"), codec("topk", fraction=0.1), codec("int8"))
    return {name: array.copy() for name, array in sent.items()}


@pytest.mark.parametrize(
    ("name", "place", "value", "problem"),
    [
        (".index", -1, SIZE, f"it must be at least 0 and below {SIZE}"),
        (".index", -1, 2**32 - 1, f"it must be at least 0 and below {SIZE}"),
        (".index", 0, 2**32 - 1, "strictly increasing"),
        (".index", 100, 0, "element 100 is 0: indices must be strictly increasing"),
        (".int8_scale", 0, np.nan, "NaN and Inf"),
        (".int8_scale", 0, np.inf, "NaN and Inf"),
        (".int8_scale", 0, -1.0, "at least 0 and below"),
        (".int8_scale", 0, 3e38, "at least 0 and below"),
    ],
)
def test_an_upload_with_a_wrong_element_is_refused_by_the_receiver(
    tmp_path: Path, name: str, place: int, value: float, problem: str
) -> None:
    arrays = sent_arrays()
    arrays[PARAMETERS + name][place] = value
    path = tmp_path / "u.npy"
    write_array(path, LAYOUT.flatten(arrays))
    with pytest.raises(BadInput, match=problem):
        check_update(path, LAYOUT)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0])
def test_bits_of_numbers_that_are_not_finite_are_refused(bits: int) -> None:
    array = np.zeros(600_000, np.uint16)
    array[-1] = bits
    with pytest.raises(BadInput, match=r"element 599999 .*NaN or Inf"):
        ArrayType(Encoding.BFLOAT16).check(array)
    with pytest.raises(BadInput, match="NaN and Inf"):
        ArrayType(Encoding.FLOAT16).check(np.array([0, np.inf], np.float16))


def test_indices_are_compared_over_the_edge_of_a_block() -> None:
    array = np.arange(600_000, dtype=np.uint32)
    kind = ArrayType(Encoding.INDEX, below=600_000)
    kind.check(array)
    array[2**18] = array[2**18 - 1]
    with pytest.raises(BadInput, match="element 262144 is 262143: indices"):
        kind.check(array)


@pytest.mark.parametrize("change", [-8, -1, 1, 8])
def test_a_length_other_than_the_declared_one_is_refused(tmp_path: Path, change: int) -> None:
    vector = LAYOUT.flatten(sent_arrays())
    write_array(tmp_path / "u.npy", np.resize(vector, len(vector) + change))
    with pytest.raises(BadInput, match="an update of this task has"):
        check_update(tmp_path / "u.npy", LAYOUT)


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "|i1", "<u4", "<f8"])
def test_a_type_other_than_the_declared_one_is_refused(tmp_path: Path, dtype: str) -> None:
    write_array(tmp_path / "u.npy", np.zeros(LAYOUT.size, dtype))
    with pytest.raises(BadInput, match="its numbers are"):
        check_update(tmp_path / "u.npy", LAYOUT)


@given(data=st.binary(min_size=LAYOUT.size, max_size=LAYOUT.size))
def test_any_bytes_are_refused_or_restored_to_finite_numbers(data: bytes) -> None:
    arrays = LAYOUT.views(np.frombuffer(data, np.uint8))
    try:
        LAYOUT.check(arrays)
    except BadInput:
        return
    pipeline = Pipeline([codec("difference"), codec("topk", fraction=0.1), codec("int8")], 1)
    restored = pipeline.on_server(update().with_arrays(arrays), received())
    assert all(np.isfinite(np.asarray(array)).all() for array in restored.arrays.values())


@given(levels=st.binary(min_size=300, max_size=300), scale=st.floats(0, 2.0**120, width=32), start=st.integers(0, 2700))
def test_levels_and_scales_within_their_limits_are_restored_to_finite_numbers(
    levels: bytes, scale: float, start: int
) -> None:
    arrays = sent_arrays()
    arrays[PARAMETERS][:] = np.frombuffer(levels, np.int8)
    arrays[PARAMETERS + ".int8_scale"][:] = scale
    arrays[PARAMETERS + ".index"][:] = np.arange(start, start + 300)
    LAYOUT.check(arrays)
    pipeline = Pipeline([codec("difference"), codec("topk", fraction=0.1), codec("int8")], 1)
    restored = np.asarray(pipeline.on_server(update().with_arrays(arrays), received()).arrays[PARAMETERS])
    expected = received()
    expected[start : start + 300] += np.frombuffer(levels, np.int8) * np.float32(scale)
    assert np.array_equal(restored, expected)


def test_the_layout_survives_the_file_in_which_a_daemon_records_what_it_expects() -> None:
    again = Allowlist.model_validate_json(Allowlist(layout=LAYOUT).model_dump_json())
    assert again.layout == LAYOUT
    assert "below" in json.loads(again.model_dump_json())["layout"]["types"]["parameters.index"]


# ---------------------------------------------------------------- arrays that are computed where they are read


def test_a_block_array_is_an_array_for_numpy() -> None:
    values = np.arange(10, dtype=np.float32)
    array = BlockArray(10, lambda start, stop: values[start:stop])
    assert np.array_equal(array[2:5], values[2:5])
    assert np.array_equal(array[::-2], values[::-2])
    assert np.array_equal(array[7:3], values[7:3])
    assert array[-1] == 9
    assert np.array_equal(array * 2 + array, values * 3)
    assert float(np.sum(array)) == 45
    assert np.array_equal(array.reshape(2, 5), values.reshape(2, 5))
    assert array.reshape(-1) is array
    assert array.copy() is not array.copy()
    assert array.astype(np.float64).dtype == np.float64


# ---------------------------------------------------------------- whole tasks

TASK = {
    "dataset": "digits",
    "model": "logistic",
    "partition": "iid",
    "num_clients": 6,
    "fraction_train": 0.5,
    "num_rounds": 4,
    "local_epochs": 2,
}


def digits() -> DataSet:
    return load_dataset(DataSetConfig.model_validate({"name": "digits", "path": "digits", "format": "digits"}), Path())


def task(**chosen: Any) -> TaskSettings:
    return parse_settings({**TASK, **chosen})[0]


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_the_processes_of_a_simulation_give_the_bytes_of_one(strategy: str) -> None:
    settings = task(transforms="difference,topk,int8", strategy=strategy)
    placement = [(0, 3), (3, 3)]
    one, two = (
        simulate(settings, digits(), chunk_clients=1, placement=placement, workers=workers) for workers in (1, 2)
    )
    assert one.digest == two.digest
    assert one.sender_states.keys() == two.sender_states.keys()
    assert set(one.sender_states) <= set(range(6))
    for sender, kept in one.sender_states.items():
        assert all(np.array_equal(array, two.sender_states[sender][name]) for name, array in kept.items())


def test_a_task_that_is_resumed_continues_with_the_residuals() -> None:
    settings = task(transforms="difference,topk")
    whole = simulate(settings, digits())
    half = simulate(settings.model_copy(update={"num_rounds": 2}), digits())
    assert simulate(settings, digits(), resume=half).digest == whole.digest
    lost = type(half)(half.vector, half.state, half.rounds)
    assert simulate(settings, digits(), resume=lost).digest != whole.digest


def test_error_feedback_sends_in_the_end_all_that_was_ever_changed() -> None:
    """By an aggregation of one sender: the model is the sum of all changes, except for the residual."""
    settings = task(transforms="difference,topk", num_clients=1, fraction_train=1, num_rounds=3)
    result = simulate(settings, digits())
    kept = result.sender_states[0]["parameters.residual"]
    assert np.count_nonzero(kept) > 0.8 * kept.size
    full = simulate(
        task(
            transforms="difference,topk",
            num_clients=1,
            fraction_train=1,
            num_rounds=3,
            **{"transforms_options.topk.fraction": 1},
        ),
        digits(),
    )
    assert not full.sender_states[0]["parameters.residual"].any()
    plain = simulate(task(num_clients=1, fraction_train=1, num_rounds=3), digits())
    assert np.allclose(full.vector, plain.vector, atol=1e-5)


def test_a_run_that_lost_clients_is_not_replayed_with_error_feedback() -> None:
    with pytest.raises(BadInput, match="a transform whose senders keep state"):
        simulate(task(transforms="difference,topk"), digits(), chunk_clients=1, missing={1: [0]})
