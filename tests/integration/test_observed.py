"""Observability of tasks: metrics for Prometheus, the logs of all hosts, the status line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from platform_support import DIGITS, Platform
from prometheus_client.parser import text_string_to_metric_families
from service_support import Service

from fedsim import __version__
from fedsim.testing.local_cluster import NodeSpec

LONG = {"local_epochs": 5, "num_rounds": 10, "evaluate_every": 2, "save_every": 5}
ANY_PORT = {"metrics": {"port": 0}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("observed")
    (folder / "data").mkdir()
    settings = {"clients": 50, "announce_seconds": 2, **ANY_PORT}
    nodes = [NodeSpec(f"node-{letter}", folder / "data", [DIGITS], settings) for letter in "ab"]
    with Platform(folder, nodes, server=ANY_PORT, receiver=ANY_PORT) as lab:
        yield lab


def scrape(lab: Platform, process: str) -> dict[str, float]:
    """What a process tells: name and labels -> value."""
    url = f"{lab.url}/metrics"
    if process != "web":
        url = re.findall(r"metrics_served .*address=(\S+)", lab.processes[process].log.read_text())[-1]
    told = {}
    for family in text_string_to_metric_families(httpx.get(url).text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            told[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return told


def story(lab: Platform, process: str, number: int) -> list[str]:
    """The events about a task in the log of a process, in order, without what comes again each round."""
    lines = re.sub(r"\x1b\[\d*m", "", lab.processes[process].log.read_text()).splitlines()
    told = [line.split("]", 1)[1].split()[0] for line in lines if re.search(rf" task={number}( |$)", line)]
    return list(dict.fromkeys(told))


def test_every_daemon_reports_metrics_and_events_of_a_task(lab: Platform) -> None:
    number = lab.submit(**LONG)
    lab.await_round(number, 2)
    psutil.Process(lab.workers("node-a")[0].pid).kill()
    lab.await_row(lambda: any(record.tested for record in lab.store.rounds.of_task(number)[1:]) or None)
    during = scrape(lab, "server")
    assert 0 < during[f"fedsim_task_metric{{metric=accuracy,task={number}}}"] <= 1
    assert during["fedsim_tasks{state=running}"] == 1
    lab.completed(number)
    lab.await_log("node-a", "task_ended")
    lab.await_log("node-b", "task_ended")

    def at_rest() -> dict[str, float] | None:
        told = scrape(lab, "server")
        return None if any(name.startswith("fedsim_task_") for name in told) else told

    server = lab.await_row(at_rest, what="for the task's labels to be gone")
    assert server["fedsim_rounds_total"] == 10
    for phase in ("train", "aggregate", "all"):
        assert server[f"fedsim_round_seconds_count{{phase={phase}}}"] == 10
    assert server["fedsim_round_seconds_count{phase=evaluate}"] == 6, "round 0 and every second one"
    assert server["fedsim_tasks_ended_total{outcome=completed}"] == 1
    assert server["fedsim_checkpoints_total"] == 2
    assert all(server[f"fedsim_node_online{{node={name}}}"] == 1 for name in ("node-a", "node-b"))
    assert server["fedsim_worker_restarts_total"] == 0
    assert server["fedsim_loop_turn_seconds_count"] > 6
    assert server["fedsim_waiting{for=database}"] == 0

    node = scrape(lab, "node-a")
    assert node["fedsim_rounds_total"] == 10
    assert node["fedsim_chunk_seconds_count"] >= 10
    assert node["fedsim_worker_restarts_total"] == 1
    assert node["fedsim_bytes_sent_total{kind=localparam}"] > 0

    receiver = scrape(lab, "receiver")
    assert receiver["fedsim_bytes_received_total"] > node["fedsim_bytes_sent_total{kind=localparam}"]
    assert receiver["fedsim_files_stored_total"] >= 12
    assert receiver["fedsim_connections_open"] >= 2
    assert scrape(lab, "node-a-receiver")[f"fedsim_build_info{{daemon=receiver,version={__version__}}}"] == 1

    told = [event for event in story(lab, "server", number) if event != "task_waits"]
    assert told == ["task_claimed", "task_started", "round_committed", "tested", "checkpoint_saved", "task_finished"]
    told = [event for event in story(lab, "node-a", number) if event not in {"file_left", "worker_died"}]
    steps = ["task_assigned", "data_loaded", "round_trained", "final_model_kept", "task_ended"]
    assert told == ["task_accepted", *steps]
    for process in ("receiver", "node-a-receiver"):
        assert story(lab, process, number) == ["file_received"]


def test_the_web_counts_requests_and_shows_its_numbers_to_this_machine_only(lab: Platform) -> None:
    httpx.get(f"{lab.url}/healthz")
    httpx.get(f"{lab.url}/no/such/page")
    told = scrape(lab, "web")
    assert told["fedsim_http_requests_total{method=GET,route=/healthz,status=200}"] >= 1
    assert told["fedsim_http_requests_total{method=,route=,status=404}"] >= 1, "strange paths are no labels"
    assert told["fedsim_http_request_seconds_count"] >= 2
    through_a_proxy = httpx.get(f"{lab.url}/metrics", headers={"X-Forwarded-For": "127.0.0.1"})
    assert through_a_proxy.status_code == 404


def test_the_status_line_shows_task_round_and_accuracy(lab: Platform, tmp_path: Path) -> None:
    lab.stop("server")
    with Service(tmp_path, lab.processes["server"].command) as server:
        server.await_told("READY=1")
        number = lab.submit(**LONG)
        while "accuracy" not in (told := server.await_told(f"STATUS=task {number}: ")):
            pass
        assert re.fullmatch(rf"STATUS=task {number}: \w+, round \d+ of 10, accuracy 0\.\d{{4}}", told)
        server.await_told("STATUS=waiting for a task")
        assert lab.completed(number).reason == "10 rounds done"
        assert server.stop() == 0
    lab.start("server")
