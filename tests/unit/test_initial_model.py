"""What training starts from: the setting, the arrays of a file, and whole tasks in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_learning_simulate import _data, _settings

from fedsim.array_layout import Layout
from fedsim.errors import BadInput
from fedsim.initial import InitialModel, InitialSource, parse_source
from fedsim.learning.initial_arrays import WantedArrays, describe_file, fill_from_file, misfit
from fedsim.learning.networks import initial_vector, parameter_shapes
from fedsim.learning.simulate import simulate
from fedsim.messages import ModelSpec
from fedsim.server.initial_files import InitialFiles
from fedsim.settings import SettingsError, TaskSettings, parse_settings
from fedsim.spool.npy import hash_file, write_vector
from fedsim.worker.checkpoint import save_checkpoint
from fedsim.worker.jobs import JobFailed, MakeInitialModel, ModelMade, SaveCheckpoint
from fedsim.worker.main_loop import Worker

pytestmark = pytest.mark.usefixtures("deterministic_torch")
SPEC = ModelSpec(name="mlp", feature_shape=(6,), num_classes=2)


def saved(folder: Path, vector: np.ndarray[Any, np.dtype[np.float32]], spec: ModelSpec = SPEC) -> tuple[Path, str]:
    """A checkpoint as the server writes it, and its digest."""
    write_vector(folder / "model.npy", vector)
    out = folder / "task-1" / "round-0002.safetensors"
    digest, _ = save_checkpoint(
        SaveCheckpoint(model_spec=spec, round=2, model=folder / "model.npy", out=out, about={"task": 1})
    )
    return out, digest


# ---------------------------------------------------------------- the setting


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("", None),
        ("task 42", InitialSource(task=42)),
        ("task 42@20", InitialSource(task=42, round=20)),
        ("  task   42@0 ", InitialSource(task=42, round=0)),
        ("file base-v1.2.safetensors", InitialSource(file="base-v1.2.safetensors")),
    ],
)
def test_the_setting_names_a_source(text: str, source: InitialSource | None) -> None:
    settings, _ = parse_settings({"initial": text})
    assert parse_source(settings.initial) == source
    assert parse_source(settings.initial) == source, "it can be written and read again"


@pytest.mark.parametrize(
    "text", ["42", "task", "task 0", "task -1", "task 1@", "task 1@x", "file ", "file ../x", "file /etc/x", "file .x"]
)
def test_another_form_and_every_path_is_refused_at_the_field(text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_settings({"initial": text})
    assert list(refused.value.problems) == ["initial"]
    assert "task 42@20" in refused.value.problems["initial"]


def test_seeds_of_model_and_partition_are_the_seed_unless_they_are_given() -> None:
    settings, _ = parse_settings({"seed": 3, "model_seed": "", "partition_seed": "7"})
    assert (settings.seed_of_model, settings.seed_of_partition) == (3, 7)
    with pytest.raises(SettingsError, match="partition_seed"):
        parse_settings({"partition_seed": -1})


# ---------------------------------------------------------------- arrays


def test_a_file_that_does_not_fit_is_explained(tmp_path: Path) -> None:
    wanted = WantedArrays({"a.weight": (2, 3), "a.bias": (2,)}, frozenset({"a.calls"}))
    right = {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.zeros(2, np.float32)}
    cases = {
        "lacks the parameters a.bias": {"a.weight": right["a.weight"]},
        "does not have: b": right | {"b": np.ones(1, np.float32)},
        "with the shape [3, 2]; the model needs [2, 3]": right | {"a.weight": np.ones((3, 2), np.float32)},
        "must have float32 arrays (F32), but a.bias is F16": right | {"a.bias": np.zeros(2, np.float16)},
    }
    for number, (problem, arrays) in enumerate(cases.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file(arrays, path)
        found = describe_file(path)
        assert problem in (misfit(found.shapes, found.types, wanted) or "")
        with pytest.raises(BadInput):
            fill_from_file(np.empty(8, np.float32), wanted, path)
    save_file(right | {"a.calls": np.zeros((), np.int64)}, tmp_path / "more.safetensors")
    fill_from_file(np.empty(8, np.float32), wanted, tmp_path / "more.safetensors")
    save_file(right | {"a.bias": np.array([0, np.inf], np.float32)}, tmp_path / "inf.safetensors")
    with pytest.raises(BadInput, match="NaN or Inf in a"):
        fill_from_file(np.empty(8, np.float32), wanted, tmp_path / "inf.safetensors")
    (tmp_path / "text.safetensors").write_text("no arrays at all")
    with pytest.raises(BadInput, match="not a file in the format safetensors"):
        describe_file(tmp_path / "text.safetensors")


def test_a_checkpoint_fills_the_vector_from_which_it_was_saved(tmp_path: Path) -> None:
    vector = initial_vector(SPEC, 5)
    path, _ = saved(tmp_path, vector)
    assert describe_file(path).model_spec == SPEC
    again = np.zeros_like(vector)
    fill_from_file(again, WantedArrays(parameter_shapes(SPEC)), path)
    assert again.tobytes() == vector.tobytes()


# ---------------------------------------------------------------- one process


def test_a_task_that_starts_from_a_checkpoint_goes_on_from_its_model(tmp_path: Path) -> None:
    first = simulate(_settings(num_rounds=2), _data())
    path, _ = saved(tmp_path, first.vector)
    from_file = simulate(_settings(num_rounds=2), _data(), initial=path)
    assert from_file.rounds[0].digest == first.digest
    arrays = Layout(parameter_shapes(SPEC)).views(first.vector)
    assert simulate(_settings(num_rounds=2), _data(), initial=arrays).digest == from_file.digest
    assert from_file.digest != first.digest


def test_settings_that_name_a_source_need_it_in_one_process() -> None:
    with pytest.raises(BadInput, match="start from task 42@20: give its file"):
        simulate(_settings(initial="task 42@20"), _data())
    with pytest.raises(BadInput, match="initial lacks the parameters"):
        simulate(_settings(), _data(), initial={})


def test_each_seed_changes_what_it_is_for() -> None:
    digests = {
        name: [result.digest for result in simulate(_settings(num_rounds=1, **chosen), _data()).rounds]
        for name, chosen in {
            "one": {},
            "same": {"model_seed": 0, "partition_seed": 0},
            "model": {"model_seed": 1},
            "partition": {"partition_seed": 1},
        }.items()
    }
    assert digests["one"] == digests["same"]
    assert digests["model"][0] != digests["one"][0]
    assert digests["partition"][0] == digests["one"][0]
    assert digests["partition"][1] != digests["one"][1]


# ---------------------------------------------------------------- the server's worker


def make(folder: Path, file: Any) -> ModelMade | JobFailed:
    settings = TaskSettings(model="mlp", initial="task 1@2")
    reply = Worker(1).do(MakeInitialModel(settings=settings, model_spec=SPEC, initial=file, out=folder / "out"))
    assert isinstance(reply, ModelMade | JobFailed)
    return reply


def test_a_worker_takes_the_recorded_file_and_no_other(tmp_path: Path) -> None:
    vector = initial_vector(SPEC, 5)
    path, digest = saved(tmp_path, vector)
    files = InitialFiles(tmp_path / "spool", tmp_path)
    recorded = InitialModel(source="task", task=1, round=2, digest=digest)
    made = make(tmp_path, files.file(recorded, tmp_path))
    assert isinstance(made, ModelMade)
    assert (tmp_path / "out" / "model.npy").read_bytes() == (tmp_path / "model.npy").read_bytes()
    changed = make(tmp_path, files.file(recorded.model_copy(update={"digest": "0" * 64}), tmp_path))
    assert isinstance(changed, JobFailed)
    assert "round 2 of task 1 has changed since the task was submitted" in changed.reason
    path.unlink()
    gone = make(tmp_path, files.file(recorded, tmp_path))
    assert isinstance(gone, JobFailed)
    assert "round 2 of task 1, from which the task starts, is no longer on the server" in gone.reason


def test_what_an_unfinished_task_starts_from_outlives_the_earlier_task(tmp_path: Path) -> None:
    path, digest = saved(tmp_path, initial_vector(SPEC, 5))
    recorded = InitialModel(source="task", task=1, round=2, digest=digest)
    files = InitialFiles(tmp_path / "spool", tmp_path)
    for _ in range(2):
        files.keep([recorded, InitialModel(source="file", file="x.safetensors", digest="1" * 64)])
    path.unlink()
    kept = files.file(recorded, tmp_path).path
    assert (hash_file(kept), [path.name for path in kept.parent.iterdir()]) == (digest, [kept.name])
    files.keep([recorded])
    assert kept.exists()
    files.keep([])
    assert not kept.exists()
