"""Clients that are trained on a Ray cluster of two processes give the bytes of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from platform_support import DIGITS, digits_lab, lives, small_settings

from fedsim import plugins
from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.errors import BadInput
from fedsim.learning.components import Components
from fedsim.learning.engine import make_deterministic
from fedsim.learning.engines import ClientData
from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.learning.errors import Diverged
from fedsim.learning.partitions import make_partition
from fedsim.learning.simulate import SimulationResult, simulate
from fedsim.messages import ModelSpec
from fedsim.testing.conformance import Candidate, check_plugin
from fedsim.worker.ray_engine import RayEngine

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(find_spec("ray") is None, reason="the optional dependency Ray is not installed"),
]
OPTIONS = RayEngine.Options(processes=2, object_store_megabytes=100)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """The cluster that the first test starts in this process ends with the module."""
    yield
    import ray  # noqa: PLC0415 - it reads the environment that the engine sets

    ray.shutdown()


def trained(settings: dict[str, Any], **given: Any) -> SimulationResult:
    make_deterministic(1)
    data = load_dataset(DataSetConfig.model_validate(DIGITS), Path())
    return simulate(small_settings(**settings), data, **given)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strategy": "scaffold", "strategy_options": {}},
        {"strategy": "median"},
        {"strategy": "fedper"},
    ],
    ids=lambda settings: settings.get("strategy", "fedavg"),
)
def test_the_updates_are_those_of_one_process(settings: dict[str, Any]) -> None:
    chosen = {"num_rounds": 2, **settings}
    assert trained(chosen, engine=RayEngine(OPTIONS)).digest == trained(chosen, engine=SequentialEngine).digest


def test_it_passes_the_conformance_suite() -> None:
    check_plugin(plugins.ENGINES, Candidate(RayEngine, {"processes": 2, "object_store_megabytes": 100}))


def test_its_processes_listen_on_loopback_only() -> None:
    trained({"num_rounds": 1}, engine=RayEngine(OPTIONS))
    listening = {
        (process.name(), connection.laddr.ip)
        for process in psutil.Process().children(recursive=True)
        if lives(process)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address for _, address in listening} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, listening
    assert listening, "the cluster's processes are looked at"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_client_that_diverges_is_named() -> None:
    with pytest.raises(Diverged, match="diverged in round 1 at client"):
        trained({"local_learning_rate": 100.0, "local_epochs": 20}, engine=RayEngine(OPTIONS))


def test_what_cannot_be_used_is_refused() -> None:
    settings = small_settings()
    data = load_dataset(DataSetConfig.model_validate(DIGITS), Path())
    held = ClientData(settings, data.train, make_partition(settings, data.train.labels))
    spec = ModelSpec.of(settings, data.train.feature_shape, data.num_classes)
    with pytest.raises(BadInput, match="trains on processors, not on cuda"):
        RayEngine(OPTIONS).start(held, spec, Components.of(settings), "cuda")
    with pytest.raises(ValueError, match="must be an engine that trains in its own process"):
        RayEngine.Options(inner="ray")


def test_a_node_trains_on_its_cluster(tmp_path: Path) -> None:
    node = {"engine": "ray", "engine_options": {"processes": 2, "object_store_megabytes": 100}}
    with digits_lab(tmp_path, nodes=1, client=node) as lab:
        task = lab.completed(lab.submit(num_nodes=1, num_rounds=2))
        (path,) = (lab.server_spool / "checkpoints" / f"task-{task.number}").glob("*.json")
        (share,) = json.loads(path.read_text())["nodes"]
        assert share["engine"]["name"] == "ray"
        plan = {"chunk_clients": share["chunk_clients"], "engine": SequentialEngine}
        expected = trained({"num_nodes": 1, "num_rounds": 2}, **plan)
        assert task.digest == expected.digest


@pytest.mark.long
def test_a_cluster_ends_with_the_process_that_started_it() -> None:
    program = (
        "import time\n"
        "from fedsim.worker.ray_trainer import connect\n"
        "connect(None, 1, 100 << 20)\n"
        "print('connected', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
        cluster = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    computing = [each for each in cluster if "Agent" not in each.name()]
    assert {"gcs_server", "raylet"} <= {each.name() for each in computing}
    try:
        _, alive = psutil.wait_procs(computing, timeout=30)
        assert alive == []
    finally:
        for agent in psutil.wait_procs(cluster, timeout=0)[1]:  # they look for the rest for another minute
            agent.kill()
