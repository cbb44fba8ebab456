"""The pipeline between training and the wire: where transforms work, what they may be combined with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from pydantic import Field

from fedsim import plugins
from fedsim.array_layout import Layout
from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.errors import BadInput
from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.learning.examples import DataSet, Examples, FloatArray
from fedsim.learning.simulate import simulate
from fedsim.learning.strategies import make_strategy
from fedsim.learning.transforms import Pipeline, Sending, Stage, Transform, Visible, compatibility, make_pipeline
from fedsim.learning.transforms.identity import IdentityTransform
from fedsim.messages import Assignment, EngineInfo, ModelSpec, Uplink
from fedsim.plugins import PluginOptions
from fedsim.settings import SettingsError, TaskSettings, parse_settings
from fedsim.spool.npy import open_vector
from fedsim.spool.updates import update_path
from fedsim.update import PARAMETERS, Update
from fedsim.worker import jobs
from fedsim.worker.node_jobs import NodeJobs
from fedsim.worker.server_jobs import ServerJobs

SETTINGS = TaskSettings(
    dataset="digits", model="logistic", partition="iid", num_clients=4, fraction_train=1.0, local_epochs=1
)


pytestmark = pytest.mark.usefixtures("deterministic_torch")


class Scaled(Transform):
    """Sends parts, together with what they are to be multiplied with."""

    class Options(PluginOptions):
        factor: float = Field(2.0, title="Factor", description="A power of two.")

    options: Options

    def on_client(self, update: Update, sending: Sending) -> Update:  # noqa: ARG002
        factor = np.float32(self.options.factor)
        part = update.arrays[PARAMETERS] / factor
        return update.with_arrays({PARAMETERS: part, "scale": np.full(1, factor, np.float32)})

    def on_server(self, update: Update, received: FloatArray) -> Update:  # noqa: ARG002
        return update.with_arrays({PARAMETERS: update.arrays[PARAMETERS] * update.arrays["scale"][0]})

    def layout(self, layout: Layout) -> Layout:
        return Layout({**layout.shapes, "scale": (1,)})


class Mask(Transform):
    visible = Visible.ONLY_SUM


class Picky(Transform):
    incompatible_with = frozenset({"mask", "fedprox"})


class Recorded(Transform):
    """Records what its sides are called with."""

    def __init__(self, name: str, told: Callable[[str], None]) -> None:
        self.name, self.told = name, told

    def on_client(self, update: Update, sending: Sending) -> Update:  # noqa: ARG002
        self.told(f"{self.name} client {update.client}")
        return update

    def on_server(self, update: Update, received: FloatArray) -> Update:  # noqa: ARG002
        self.told(f"{self.name} server {update.client}")
        return update


class RecordedClient(Recorded):
    stage = Stage.CLIENT


def offered(*names: str) -> AbstractContextManager[None]:
    """Classes of this module as installed transforms, by their names in small letters."""
    points = (EntryPoint(name.lower(), f"{__name__}:{name}", plugins.TRANSFORMS) for name in names)
    return plugins.registered(plugins.TRANSFORMS, *points)


def digits() -> DataSet:
    return load_dataset(DataSetConfig.model_validate({"name": "digits", "path": "digits", "format": "digits"}), Path())


def round_of_two_nodes(folder: Path, **chosen: object) -> tuple[jobs.ModelMade, list[tuple[Path, Update]]]:
    """A round of a task over two nodes' workers and the server's."""
    server = ServerJobs(1)
    settings = SETTINGS.model_copy(update=chosen)
    shape = {"settings": settings, "model_spec": ModelSpec.of(settings, (8, 8), 10)}
    server.do(jobs.MakeInitialModel.model_validate({**shape, "out": folder / "0"}))
    updates, files = [], []
    for number, node in enumerate(("a", "b")):
        assignment = Assignment(
            uplink=Uplink.SUM,
            task="5" * 32,
            number=1,
            first_client=2 * number,
            num_clients=2,
            engine=EngineInfo(),
            **shape,  # type: ignore[arg-type]
        )
        data = DataSetConfig.model_validate({"name": "digits", "path": "digits", "format": "digits"})
        worker = NodeJobs(1)
        worker.do(jobs.Load(assignment=assignment, dataset=data, folder=folder, min_examples=1))
        clients = (2 * number, 2 * number + 1)
        train = jobs.Train(round=1, chunk=number, clients=clients, model=folder / "0" / "model.npy", out=folder / node)
        reply = worker.do(train)
        assert isinstance(reply, jobs.ChunkTrained)
        updates += [update.model_copy(update={"node": node}) for update in reply.updates]
        files += [update_path(folder / node, update) for update in reply.updates]
    made = server.do(
        jobs.Aggregate(
            settings=settings,
            round=1,
            base=folder / "0",
            updates=tuple(updates),
            files=tuple(files),
            out=folder / "1",
        )
    )
    assert isinstance(made, jobs.ModelMade)
    return made, list(zip(files, updates, strict=True))


def test_the_identity_and_what_the_server_undoes_change_no_byte_of_the_model(tmp_path: Path) -> None:
    plain, sent = round_of_two_nodes(tmp_path / "plain")
    same, sent_too = round_of_two_nodes(tmp_path / "identity", transforms=("identity",))
    with offered("Scaled"):
        chosen = {"transforms": ("identity", "scaled"), "transforms_options": {"scaled": {"factor": 4}}}
        scaled, parts = round_of_two_nodes(tmp_path / "scaled", **chosen)
        one_round = SETTINGS.model_copy(update={"num_rounds": 1, **chosen})
        alone = simulate(one_round, digits(), chunk_clients=2, engine=SequentialEngine)
    assert plain.digest == same.digest == scaled.digest == alone.digest
    assert [update.digest for _, update in sent] == [update.digest for _, update in sent_too]
    whole, part = open_vector(sent[0][0]), open_vector(parts[0][0])
    assert np.array_equal(part[:-1], whole / 4)
    assert part[-1] == 4, "the array that the transform adds is in the file"


def test_client_sides_run_in_order_each_at_its_stage_and_server_sides_in_reverse() -> None:
    told: list[str] = []
    rng = np.random.default_rng(0)
    examples = Examples(rng.normal(size=(20, 4)).astype(np.float32), rng.integers(2, size=20))
    settings = SETTINGS.model_copy(update={"num_clients": 2, "num_rounds": 1})
    plain = simulate(settings, DataSet(examples, None, 2), engine=SequentialEngine)
    recorded = [Recorded("first", told.append), RecordedClient("second", told.append), Recorded("third", told.append)]
    assert simulate(settings, DataSet(examples, None, 2), transforms=recorded).digest == plain.digest
    assert told == [
        "second client 0",
        "second client 1",
        "first client None",
        "third client None",
        "third server None",
        "second server None",
        "first server None",
    ]


def test_what_combines_with_what_derives_from_the_declarations() -> None:
    strategies = {
        name: make_strategy(SETTINGS.model_copy(update={"strategy": name, "local_epochs": 2}))
        for name in plugins.names(plugins.STRATEGIES)
    }
    matrix = compatibility(strategies, {"identity": IdentityTransform(), "mask": Mask(), "picky": Picky()})
    robust = {name for name, strategy in strategies.items() if strategy.uplink == Uplink.EACH_CLIENT}
    assert {"median", "krum"} <= robust
    assert {pair for pair, problem in matrix.items() if problem} == {
        *((name, "mask") for name in robust),
        ("fedprox", "picky"),
        ("fedbuff", "picky"),  # it may use the received model: it does not say that it does not
        ("mask", "picky"),
    }
    assert len(matrix) == len(strategies) * 3 + 3
    assert "only see their sum" in matrix["median", "mask"]


def test_a_pipeline_that_cannot_work_is_refused_with_the_reason() -> None:
    def make(*names: str, strategy: str = "fedavg") -> Pipeline:
        settings = SETTINGS.model_copy(update={"strategy": strategy, "transforms": names})
        return make_pipeline(settings, make_strategy(settings))

    with offered("Mask"):
        assert make("identity", "mask").visible == Visible.ONLY_SUM
        assert make().visible == Visible.VALUES
        with pytest.raises(BadInput, match="median and mask cannot be combined: the strategy needs each client's upd"):
            make("mask", strategy="median")
        with pytest.raises(BadInput, match=r"unknown transform 'clip' \(available: bfloat16, .*identity, .*mask"):
            make("clip")


def test_the_settings_list_transforms_with_their_options() -> None:
    with offered("Scaled", "Mask"):
        for given in (
            {"transforms": "scaled, mask", "transforms_options.scaled.factor": "8"},
            {"transforms": ["scaled", "mask"], "transforms_options": {"scaled.factor": 8}},
            {"transforms": ("scaled", "mask"), "transforms_options": {"scaled": {"factor": 8}}},
        ):
            settings, _ = parse_settings(given)
            assert settings.transforms == ("scaled", "mask")
            assert settings.transforms_options == {"scaled": {"factor": 8.0}, "mask": {}}
            assert parse_settings(settings.model_dump(mode="json"))[0] == settings
            assert settings.chosen_plugins["transforms.mask"] == (plugins.TRANSFORMS, "mask")


@pytest.mark.parametrize(
    ("given", "field", "problem"),
    [
        ({"transforms": "identity, clip"}, "transforms", "unknown transform 'clip' (available: bfloat16, "),
        ({"transforms": "identity,identity"}, "transforms", "names one twice"),
        ({"transforms": "-x"}, "transforms", "must be a name of at most 64 letters"),
        ({"transforms_options": {"clip": {"norm": 1}}}, "transforms_options.clip", "clip is not one of the transforms"),
        (
            {"transforms": "identity", "transforms_options.identity.norm": 1},
            "transforms_options.identity.norm",
            "identity has no options",
        ),
    ],
)
def test_a_wrong_list_of_transforms_is_a_problem_of_its_field(
    given: dict[str, object], field: str, problem: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(given)
    assert set(caught.value.problems) == {field}
    assert problem in caught.value.problems[field]
