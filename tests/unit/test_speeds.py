"""How a node trains quickest: what is measured, what is kept of it, and what a plan makes of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from plugin_support import INFO, attempt, chosen_plugins, hello, planned
from pydantic import ValidationError
from test_institution_rules import config
from test_task_machine_more import assignment

from fedsim.client.speed_table import MeasuredOn, SpeedTable, read_speeds, renew_speeds
from fedsim.config import ClientConfig
from fedsim.errors import BadInput
from fedsim.learning.measuring import Manner, manners, measure, quickest
from fedsim.messages import Hello, ModelSpec, SpeedInfo
from fedsim.settings import TaskSettings
from fedsim.speed import USUAL_CHUNK_CLIENTS, SpeedRequest, power_of_two
from fedsim.state_machines.candidates import Measuring
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.policy import refusal
from fedsim.state_machines.speeds import MAX_CHUNKS, speed_request

SETTINGS = TaskSettings(num_clients=20, fraction_train=1.0, partition="iid", num_rounds=3)
SPEC = ModelSpec.of(SETTINGS, INFO.feature_shape, INFO.num_classes)
HOST = MeasuredOn(version="1", torch="2", processor="p", processors=2, engine="auto", threads="auto", workers=1)
UID = "ab" * 16
ENGINES = ("sequential", "batched")


def request(settings: TaskSettings = SETTINGS) -> SpeedRequest:
    return speed_request(UID, settings, INFO, SPEC, chosen_plugins(settings))


def speed(asked: SpeedRequest | None = None, **changes: Any) -> SpeedInfo:
    found = {"engine": "batched", "threads": 2, "workers": 4, "chunk_clients": 16}
    return SpeedInfo(key=(asked or request()).key, **{**found, **changes})


# ---------------------------------------------------------------- kinds of training


def test_a_kind_of_training_has_one_key_whatever_the_task_and_a_little_more_or_less() -> None:
    one = request()
    for changes in ({"seed": 7}, {"num_rounds": 9}, {"local_epochs": 1}, {"local_batch_size": 15}, {"num_clients": 30}):
        assert request(SETTINGS.model_copy(update=changes)).key == one.key, changes
    other_task = one.model_copy(update={"task": "cd" * 16})
    assert other_task.key == one.key


@pytest.mark.parametrize(
    "changes",
    [
        {"local_batch_size": 16},
        {"num_clients": 50},
        {"model_options": {"hidden": [3]}},
        {"strategy": "scaffold"},
        {"strategy_options": {"weighting": "equal"}},
    ],
)
def test_another_kind_of_training_has_another_key(changes: dict[str, Any]) -> None:
    settings = SETTINGS.model_copy(update=changes)
    spec = ModelSpec.of(settings, INFO.feature_shape, INFO.num_classes)
    assert speed_request(UID, settings, INFO, spec, chosen_plugins(settings)).key != request().key


def test_other_code_of_a_plug_in_has_another_key() -> None:
    plugins = chosen_plugins(SETTINGS)
    plugins["model"] = plugins["model"].model_copy(update={"digest": "cd" * 16})
    assert speed_request(UID, SETTINGS, INFO, SPEC, plugins).key != request().key


def test_counts_are_rounded_to_powers_of_two() -> None:
    assert [power_of_two(count) for count in (1, 2, 3, 4, 31, 32, 1000)] == [1, 2, 2, 4, 16, 32, 512]
    asked = request()
    assert (asked.examples, asked.batch_size) == (16, 8), "600 examples for 20 clients, batches of 10"


# ---------------------------------------------------------------- what is measured


def test_candidates_use_the_processors_once_and_what_the_owner_fixes_stays() -> None:
    assert manners(("s",), 2) == [Manner("s", 1, 2), Manner("s", 2, 1)]
    sixteen = [(each.threads, each.workers) for each in manners(("s",), 16)]
    assert sixteen == [(1, 16), (2, 8), (4, 4), (16, 1)]
    assert manners(("s", "b"), 6, threads=3) == [Manner("s", 3, 2), Manner("b", 3, 2)]
    assert manners(("s",), 4, workers=1) == [Manner("s", 1, 1), Manner("s", 2, 1), Manner("s", 4, 1)]
    assert manners(("s",), 1) == [Manner("s", 1, 1)]


def test_only_what_is_clearly_faster_displaces_what_is_simpler() -> None:
    one, two, three = manners(("s", "b", "c"), 1)
    assert quickest({one: 1.0, two: 0.95, three: 0.91}) == one
    assert quickest({one: 1.0, two: 0.8, three: 0.75}) == two
    assert quickest({one: 1.0, two: 1.5, three: 0.5}) == three


def measured(candidates: list[Manner], memory: int) -> Any:
    ticks = itertools.count()
    asked = request(SETTINGS.model_copy(update={"model": "logistic", "num_clients": 100}))
    asked = asked.model_copy(update={"model_spec": SPEC.model_copy(update={"name": "logistic"})})
    return measure(
        asked,
        candidates,
        num_parameters=7850,
        memory_bytes=memory,
        budget_seconds=0.0,
        prepare=lambda _: None,
        clock=lambda: float(next(ticks)),
    )


def test_each_candidate_trains_in_its_own_processes_and_is_timed() -> None:
    candidates = [Manner("sequential", 1, 2), Manner("batched", 1, 2)]
    found = measured(candidates, 1 << 30)
    # By this clock each training takes one second, so that nothing is worth changing to.
    assert found.seconds == dict.fromkeys(candidates, 0.5)
    assert (found.manner, found.chunk_clients) == (candidates[0], USUAL_CHUNK_CLIENTS)


def test_what_does_not_fit_into_memory_is_not_tried() -> None:
    found = measured([Manner("sequential", 1, 2), Manner("batched", 1, 2)], 1 << 16)
    assert (found.manner, found.seconds) == (Manner("sequential", 1, 2), {})


# ---------------------------------------------------------------- what a node keeps


def test_results_stay_until_the_host_is_another(tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    SpeedTable(path, HOST).add(speed(), request())
    again = SpeedTable(path, HOST)
    assert again.speeds == (speed(),)
    for changes in (
        {"version": "2"},
        {"torch": "3"},
        {"processor": "q"},
        {"processors": 4},
        {"engine": "batched"},
        {"engine_options": {"group_megabytes": 8}},
        {"workers": 2},
    ):
        assert SpeedTable(path, HOST.model_copy(update=changes)).speeds == (), changes
    assert again.speeds == (speed(),), "looking at it elsewhere changes nothing"


def test_a_renewed_result_takes_the_place_of_the_old_one_and_the_oldest_give_way(tmp_path: Path) -> None:
    table = SpeedTable(tmp_path / "speeds.json", HOST)
    table.add(speed(), request())
    table.add(speed(threads=1), request())
    assert table.speeds == (speed(threads=1),)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"content": {}, "digest": "0"}', "\x00" * 9])
def test_a_damaged_file_is_no_result_and_is_written_anew(tmp_path: Path, content: str) -> None:
    path = tmp_path / "speeds.json"
    path.write_text(content)
    table = SpeedTable(path, HOST)
    assert table.speeds == ()
    with pytest.raises(BadInput):
        read_speeds(path)
    table.add(speed(), request())
    assert SpeedTable(path, HOST).speeds == (speed(),)


def test_one_changed_number_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    SpeedTable(path, HOST).add(speed(), request())
    path.write_text(path.read_text().replace('"threads": 2', '"threads": 3').replace('"threads":2', '"threads":3'))
    assert "3" in path.read_text()
    assert SpeedTable(path, HOST).speeds == ()


def test_an_owner_forgets_results_while_the_daemon_runs(tmp_path: Path) -> None:
    path = tmp_path / "speeds.json"
    table = SpeedTable(path, HOST)
    other = request(SETTINGS.model_copy(update={"local_batch_size": 16}))
    table.add(speed(), request())
    table.add(speed(other), other)
    removed = renew_speeds(path, [request().key[:8]])
    assert [one.speed.key for one in removed] == [request().key]
    assert table.speeds == (speed(other),)
    renew_speeds(path)
    assert table.speeds == ()
    assert read_speeds(path) is not None
    path.write_text("damaged")
    assert renew_speeds(path) == []
    assert not path.exists()


# ---------------------------------------------------------------- what a plan makes of it


def measuring_node(name: str, *speeds: SpeedInfo, **changes: Any) -> Hello:
    return hello(name, **{"measures": True, "engines": ENGINES, "workers": 4, "speeds": speeds, **changes})


def test_a_task_waits_until_the_nodes_that_measure_have_done_so() -> None:
    waiting = attempt(SETTINGS, [measuring_node("a"), measuring_node("b", speed()), hello("c")])
    assert isinstance(waiting, Measuring)
    assert waiting.reason == "a to measure how to train it"
    assert [(node, asked.key) for node, asked in waiting.requests.items()] == [("a", request().key)]
    late = planned(measuring_node("a"), measuring_node("b", speed()), settings=SETTINGS, measured_late={"a"})
    assert late.notes == ("a did not measure its speed in time: it trains as its configuration says",)
    assert [(share.engine.name, share.workers) for share in late.shares] == [("sequential", None), ("batched", 4)]


def test_a_plan_trains_as_each_node_has_measured() -> None:
    plan = planned(measuring_node("a", speed(chunk_clients=2)), hello("b", workers=2), settings=SETTINGS)
    one, other = plan.shares
    assert (one.engine.name, one.engine.threads, one.workers, one.chunk_clients) == ("batched", 2, 4, 2)
    assert (other.engine.name, other.engine.threads, other.workers, other.chunk_clients) == (
        "sequential",
        1,
        None,
        None,
    )
    assert [len(chunk.clients) for chunk in plan.chunks(1)] == [2, 2, 2, 2, 2, 3, 3, 4]
    assert (plan.assignment("a").workers, plan.assignment("b").workers) == (4, None)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_a_node_that_does_not_measure_is_planned_as_it_always_was() -> None:
    plan = planned(hello("a", speeds=(speed(),)), hello("b"), settings=SETTINGS)
    assert {(share.engine.name, share.workers, share.chunk_clients) for share in plan.shares} == {
        ("sequential", None, None)
    }
    assert plan.chunk_sizes == (10, 10)


def test_no_measurement_is_believed_beyond_bounds() -> None:
    (share,) = planned(measuring_node("a", speed(workers=4096, chunk_clients=1)), settings=SETTINGS).shares
    assert share.workers == 4, "no more workers than the node announces"
    many = SETTINGS.model_copy(update={"num_clients": 10_000})
    info = INFO.model_copy(update={"num_train": 600_000})
    asked = speed_request(UID, many, info, SPEC, chosen_plugins(many))
    node = measuring_node("a", speed(asked, chunk_clients=1), clients=10_000, datasets=(info,))
    plan = planned(node, settings=many)
    assert len(plan.chunks(1)) <= MAX_CHUNKS
    invented = measuring_node("a", speed(engine="no_such_engine"))
    assert isinstance(attempt(SETTINGS, [invented]), Measuring), "an engine that the node does not offer"
    least = measuring_node("a", speed(chunk_clients=1), min_clients=3)
    assert planned(least, settings=SETTINGS).chunk_sizes == (5,), "2 * 3 - 1, as the institution demands"
    for changes in ({"threads": 0}, {"workers": 10**6}, {"chunk_clients": 10**6}, {"engine": "../x"}):
        with pytest.raises(ValidationError):
            speed(**changes)


def test_a_node_refuses_more_workers_than_it_has_processors() -> None:
    asked = assignment().model_copy(update={"workers": 3})
    auto, three = (config().model_copy(update={"workers": workers}) for workers in ("auto", 3))
    assert refusal(asked, auto, processors=2) == "3 workers are asked for, this node has 2 processors"
    assert refusal(asked, auto, processors=4) is None
    assert refusal(asked, three, processors=2) is None


def test_auto_is_a_value_of_three_keys() -> None:
    given = {"name": "a", "server": {"port": 1}, "datasets": [{"name": "d", "path": "d"}]}
    fixed = ClientConfig.model_validate(given)
    assert (fixed.measures, fixed.idle_threads) == (False, 1)
    for key in ("engine", "workers", "threads_per_worker"):
        assert ClientConfig.model_validate({**given, key: "auto"}).measures
    with pytest.raises(ValidationError, match="unknown engine"):
        ClientConfig.model_validate({**given, "engine": "autom"})
    with pytest.raises(ValidationError, match="engine"):
        ClientConfig.model_validate({**given, "engine": "auto", "engine_options": {"group_megabytes": 4}})
    assert json.loads(fixed.model_dump_json())["workers"] == 1
