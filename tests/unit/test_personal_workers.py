"""Workers that lose their memory test clients' own models, and measure contributions, as one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.evaluation import EvaluationReport
from fedsim.learning import node_evaluation
from fedsim.learning.contributions import Contributions
from fedsim.learning.simulate import simulate
from fedsim.messages import Assignment, EngineInfo, ModelSpec, Uplink
from fedsim.settings import TaskSettings
from fedsim.spool.layout import MODEL_FILE
from fedsim.spool.updates import update_path
from fedsim.worker import evaluation_jobs, jobs
from fedsim.worker.node_jobs import NodeJobs
from fedsim.worker.server_jobs import ServerJobs

pytestmark = pytest.mark.usefixtures("deterministic_torch")
SETTINGS = TaskSettings(
    dataset="digits",
    model="2nn",
    partition="labels_per_client",
    partition_options={"labels": 3},
    num_clients=4,
    fraction_train=1.0,
    local_epochs=1,
    num_rounds=3,
    strategy="fedper",
    evaluation="nodes",
    evaluate_every=1,
)
DATA = DataSetConfig.model_validate(
    {"name": "digits", "path": "digits", "format": "digits", "validation_share": 0.2, "access": "open"}
)
SPEC = ModelSpec.of(SETTINGS, (8, 8), 10)
NODES = {"a": 0, "b": 2}
"""The nodes and their first clients; each has two."""


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_evaluation, "RESAMPLES", 5)


def worker(folder: Path, node: str, figures: int | None = None) -> NodeJobs:
    assignment = Assignment(
        uplink=Uplink.SUM,
        task="5" * 32,
        number=1,
        settings=SETTINGS,
        first_client=NODES[node],
        num_clients=2,
        model_spec=SPEC,
        engine=EngineInfo(),
    )
    made = NodeJobs(1)
    load = jobs.Load(assignment=assignment, dataset=DATA, folder=folder, min_examples=1, client_figures=figures)
    assert isinstance(made.do(load), jobs.DataLoaded)
    return made


def run(folder: Path, tested: tuple[int, ...]) -> list[Contributions]:
    """All rounds on two nodes, of which only a lets figures of single clients leave."""
    server = ServerJobs(1)
    server.do(jobs.MakeInitialModel(settings=SETTINGS, model_spec=SPEC, out=folder / "0"))
    workers = {"a": worker(folder, "a", 10), "b": worker(folder, "b")}
    found = []
    for number in range(1, 4):
        updates, files = [], []
        for chunk, (node, first) in enumerate(NODES.items()):
            train = jobs.Train(
                round=number,
                chunk=chunk,
                clients=(first, first + 1),
                model=folder / str(number - 1) / MODEL_FILE,
                out=folder / node,
                tested=tested,
            )
            reply = workers[node].do(train)
            assert isinstance(reply, jobs.ChunkTrained)
            updates += [update.model_copy(update={"node": node}) for update in reply.updates]
            files += [update_path(folder / node, update) for update in reply.updates]
        base, out = folder / str(number - 1), folder / str(number)
        made = server.do(
            jobs.Aggregate(
                settings=SETTINGS, round=number, base=base, updates=tuple(updates), files=tuple(files), out=out
            )
        )
        assert isinstance(made, jobs.ModelMade)
        found.append(made.contributions)
    return found


def report(folder: Path, node: str, number: int) -> EvaluationReport:
    job = evaluation_jobs.TestHeldOut(
        round=number, node=node, model=folder / str(number) / MODEL_FILE, min_examples=10, states=folder / node
    )
    reply = worker(folder, node).do(job)
    assert isinstance(reply, evaluation_jobs.HeldOutTested)
    return reply.report


def test_late_tests_and_contributions_are_those_of_one_process(tmp_path: Path) -> None:
    expected = simulate(SETTINGS, load_dataset(DATA, tmp_path), placement=[(0, 2), (2, 2)], chunk_clients=2)
    contributions = run(tmp_path, tested=(0, 1))
    for result in expected.rounds:
        for node, first in NODES.items():
            of_node: dict[str, Any] = result.node_metrics["nodes"][str(first)]
            found = report(tmp_path, node, result.round)
            assert (found.num_examples, found.metrics) == (of_node["num_examples"], of_node["metrics"])
    for result, found_of_round in zip(expected.rounds[1:], contributions, strict=True):
        computed = result.contributions
        assert found_of_round.norm == computed.norm
        for node, first in NODES.items():
            assert found_of_round.nodes[node] == computed.nodes[str(first)].model_copy(update={"node": node})
        assert found_of_round.clients == {
            client: computed.clients[client].model_copy(update={"node": "a"}) for client in (0, 1)
        }, "node b lets those of no client leave"


def test_a_test_whose_states_are_gone_gives_no_number(tmp_path: Path) -> None:
    run(tmp_path, tested=())
    assert report(tmp_path, "a", 2).metrics
    gone = report(tmp_path, "a", 1)
    assert gone.withheld == "what client 0 kept after round 1 is no longer on this node"
    assert (gone.num_examples, gone.metrics) == (0, {})
