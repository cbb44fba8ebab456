"""Screening of updates: what it finds, what it leaves out, and what that means for the record of a round."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plugin_support import hello, planned

from fedsim import plugins
from fedsim.errors import BadInput
from fedsim.learning.aggregate import aggregate, model_digest
from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.learning.examples import DataSet, Examples, FloatArray
from fedsim.learning.screenings import Screened, Screening, make_screening, screen
from fedsim.learning.screenings.norm_and_direction import Exclude, Record
from fedsim.learning.simulate import SimulationResult, simulate
from fedsim.learning.strategies.fedavg import FedAvg
from fedsim.learning.strategies.scaffold import Scaffold
from fedsim.learning.transforms import Transform, Visible, make_pipeline
from fedsim.server.screened import MAX_RECORDED, counted, kept_figures, missing_with_excluded, screening_events
from fedsim.settings import SettingsError, TaskSettings, parse_settings
from fedsim.spool.npy import hash_file, write_vector
from fedsim.state_machines.task_events import WriteRoster
from fedsim.update import PARAMETERS, Update
from fedsim.worker.jobs import Aggregate, ModelMade
from fedsim.worker.server_jobs import ServerJobs

pytestmark = pytest.mark.usefixtures("deterministic_torch")
SIZE = 500


def received() -> FloatArray:
    return np.random.default_rng(0).normal(size=SIZE).astype(np.float32)


def honest(count: int = 9) -> list[FloatArray]:
    """Differences from the received model: a common direction, and noise that is larger."""
    rng = np.random.default_rng(1)
    common = rng.normal(size=SIZE)
    return [(common + 2 * rng.normal(size=SIZE)).astype(np.float32) for _ in range(count)]


def as_updates(differences: list[FloatArray]) -> list[Update]:
    found = []
    for number, difference in enumerate(differences):
        place = {"node": "abc"[number // 3], "chunk": number // 3, "client": number}
        update = Update(base_round=1, num_examples=10 + number, metrics={}, **place)
        found.append(update.with_arrays({PARAMETERS: received() + difference}))
    return found


STRICT = Exclude(Exclude.Options(min_cosine=-0.5))


def screened(differences: list[FloatArray], screening: Screening = STRICT) -> tuple[Screened, ...]:
    return screen(screening, FedAvg(), received(), as_updates(differences))[0]


def outside(differences: list[FloatArray], screening: Screening = STRICT) -> list[int | None]:
    return [record.client for record in screened(differences, screening) if record.outside]


def test_a_scaled_update_is_outside_by_its_norm_and_no_other_by_its_influence() -> None:
    for factor in (30, 1e6, 1e15):
        differences = honest()
        differences[4] = differences[4] * np.float32(factor)
        found = screened(differences)
        assert [record.client for record in found if record.excluded] == [4]
        assert found[4].outside.startswith("its norm is ")
        assert "times the median, more than 10" in found[4].outside


def test_an_update_against_the_others_is_outside_by_its_direction_however_large() -> None:
    for factor in (-1, -1e6):
        differences = [difference / 4 + honest()[0] for difference in honest()]
        differences[4] = differences[4] * np.float32(factor)
        (record,) = (record for record in screened(differences) if record.outside)
        assert record.client == 4
        assert "its direction has the cosine -0." in record.outside
        assert record.figures["cosine"] is not None
        assert record.figures["cosine"] < -0.5
    assert outside([*differences[:4], -differences[0]], Exclude()) == [], "by default only the norm counts"


def test_figures_are_those_of_whole_vectors() -> None:
    differences = honest()
    units = [difference / np.linalg.norm(difference) for difference in differences]
    median = np.median([np.linalg.norm(difference) for difference in differences])
    for number, record in enumerate(screened(differences, Record())):
        others = np.sum([unit for other, unit in enumerate(units) if other != number], axis=0)
        norm = np.linalg.norm(differences[number])
        expected = [norm, norm / median, units[number] @ others / np.linalg.norm(others)]
        assert np.allclose(list(record.figures.values()), expected, rtol=1e-4)
        assert not record.excluded


def test_where_half_of_the_updates_or_more_are_outside_all_count() -> None:
    same = honest()[0]
    for count, scaled, expected in ((9, 4, 4), (4, 1, 1), (3, 1, 1)):
        differences = [same.copy() for _ in range(count)]
        for number in range(scaled):
            differences[number] *= 100
        assert sum(record.excluded for record in screened(differences)) == expected
    opposed = [same, -same, same, -same]
    strict = Exclude(Exclude.Options(min_cosine=0.5))
    found = screened(opposed, strict)
    assert all(record.outside for record in found)
    assert not any(record.excluded for record in found)
    assert not any(record.excluded for record in screened([same, -same]))
    assert outside([same]) == []


def test_one_update_is_not_compared_with_anything() -> None:
    (record,) = screened([honest()[0]])
    assert record.figures == {
        "norm": pytest.approx(np.linalg.norm(honest()[0]), rel=1e-4),
        "norm_ratio": 1,
        "cosine": 0,
    }


def test_what_is_not_finite_is_left_out_and_recorded_as_unknown() -> None:
    differences = honest()
    differences[2][7] = np.nan
    record = screened(differences)[2]
    assert (record.excluded, record.outside) == (True, "it is not finite")
    assert set(record.figures.values()) == {None}


# ---------------------------------------------------------------- tasks


def data(sizes: tuple[int, ...] = (600,)) -> list[DataSet]:
    rng = np.random.default_rng(4)
    found = []
    for count in sizes:
        labels = np.arange(count, dtype=np.int64) % 3
        features = (rng.normal(size=(count, 8)) + 2 * np.eye(8)[labels]).astype(np.float32)
        found.append(DataSet(Examples(features, labels), None, 3))
    return found


def settings(**changes: Any) -> TaskSettings:
    fixed = {"model": "logistic", "partition": "iid", "num_clients": 6, "fraction_train": 1.0, "num_rounds": 4}
    return parse_settings({**fixed, "local_epochs": 1, "local_learning_rate": 0.1, **changes})[0]


class Attack(SequentialEngine):
    """Sends an update of client 3 that is scaled."""

    def start(self, *args: Any) -> Any:
        self.inner = super().start(*args)
        return self

    def train(self, clients: Any, round_number: int, global_vector: Any, **kwargs: Any) -> Any:
        for update in self.inner.train(clients, round_number, global_vector, **kwargs):
            if update.client == 3:
                sent = global_vector + np.float32(-50) * (update.arrays[PARAMETERS] - global_vector)
                yield update.with_arrays({**update.arrays, PARAMETERS: sent})
            else:
                yield update


def run(*, engine: Any = SequentialEngine, missing: Any = None, **changes: Any) -> SimulationResult:
    return simulate(settings(**changes), data(), engine=engine, chunk_clients=1, missing=missing)


def test_off_and_record_give_the_same_model() -> None:
    off = run()
    assert off.rounds[-1].screening == ()
    record = run(screening="record")
    assert record.digest == off.digest
    assert [found.chunk for found in record.rounds[-1].screening] == list(range(6))


@pytest.mark.parametrize("aggregation", ["", "median"])
def test_a_task_without_the_excluded_clients_is_replayed_by_one_that_lacks_them(aggregation: str) -> None:
    attacked = run(engine=Attack, screening="exclude", aggregation=aggregation)
    assert [found.chunk for found in attacked.rounds[-1].screening if found.excluded] == [3]
    missing = {str(number): [3] for number in range(1, 5)}
    replayed = run(screening="exclude", aggregation=aggregation, missing=missing)
    assert replayed.digest == attacked.digest
    assert replayed.rounds[-1].num_examples == attacked.rounds[-1].num_examples == 500
    assert run(engine=Attack, aggregation=aggregation).digest != run(aggregation=aggregation).digest


@pytest.mark.parametrize("aggregation", ["", "median"])
@pytest.mark.parametrize(("partition", "options"), [("shards", {}), ("dirichlet", {"alpha": 0.3}), ("local", {})])
def test_honest_clients_of_unequal_data_are_not_outside(partition: str, options: Any, aggregation: str) -> None:
    sizes = (30, 60, 120, 240, 480, 960) if partition == "local" else (600,)
    chosen = settings(
        partition=partition, partition_options=options, aggregation=aggregation, screening="exclude", local_epochs=2
    )
    chosen = chosen.model_copy(update={"num_rounds": 6})
    result = simulate(chosen, data(sizes), chunk_clients=1)
    found = [record for number in result.rounds for record in number.screening if record.outside]
    assert found == []
    assert sum(len(number.screening) for number in result.rounds) == 6 * 6


# ---------------------------------------------------------------- the platform


def test_a_worker_leaves_the_excluded_update_out_and_reports_it(tmp_path: Path) -> None:
    differences = honest()
    differences[4] *= 100
    updates = as_updates(differences)
    base = tmp_path / "base"
    base.mkdir()
    write_vector(base / "model.npy", received())
    stored = []
    for number, update in enumerate(updates):
        digest = write_vector(tmp_path / f"{number}.npy", update.arrays[PARAMETERS])
        assert digest == hash_file(tmp_path / f"{number}.npy")
        stored.append(update.stored(digest, 1))
    job = Aggregate(
        settings=settings(screening="exclude"),
        round=1,
        base=base,
        updates=tuple(stored),
        files=tuple(tmp_path / f"{number}.npy" for number in range(9)),
        out=tmp_path / "out",
    )
    made = ServerJobs(1).do(job)
    assert isinstance(made, ModelMade)
    assert [record.client for record in made.screening if record.excluded] == [4]
    rest = [update for update in updates if update.client != 4]
    out = np.empty(SIZE, np.float32)
    weights = [float(update.num_examples) for update in rest]
    assert aggregate(FedAvg(), received(), [update.arrays[PARAMETERS] for update in rest], weights, {}, out, {})
    assert made.digest == model_digest(out)
    again = ServerJobs(1).do(job.model_copy(update={"out": tmp_path / "again"}))
    assert isinstance(again, ModelMade)
    assert (again.digest, again.screening) == (made.digest, made.screening)
    assert ModelMade.model_validate_json(made.model_dump_json()) == made


PLAN = planned(
    hello("a"),
    hello("b"),
    settings=TaskSettings(partition="iid", num_clients=20, fraction_train=1.0, screening="exclude"),
)


def record(
    node: str, chunk: int, client: int | None = None, *, excluded: bool = True, why: str = "it is odd"
) -> Screened:
    figures = {"norm": 1.23456, "norm_ratio": None}
    return Screened(node=node, chunk=chunk, client=client, figures=figures, outside=why, excluded=excluded)


def test_what_is_left_out_counts_as_missing() -> None:
    chunks = PLAN.chunks(1)
    assert missing_with_excluded(PLAN, WriteRoster(1, (), (3,)), ()) == [3]
    assert missing_with_excluded(
        PLAN, WriteRoster(1, (), (3,)), [record("a", 0, 7), record("a", 0, 5, excluded=False)]
    ) == [3, 7]
    assert missing_with_excluded(PLAN, WriteRoster(1, (), ()), [record("b", chunks[-1].id)]) == list(chunks[-1].clients)
    updates = as_updates(honest(3))
    assert counted(updates, [record("a", 0, 1)]) == (updates[0], updates[2])


def test_figures_of_guarded_data_have_two_digits_and_outliers_come_first() -> None:
    many = [record("a", number, why="", excluded=False) for number in range(MAX_RECORDED + 50)]
    many[-1] = record("b", MAX_RECORDED + 49)
    kept = kept_figures(many, guarded=True)
    assert len(kept) == MAX_RECORDED
    assert kept[-1]["node"] == "b"
    assert kept[0]["figures"] == {"norm": 1.2, "norm_ratio": None}
    assert kept_figures(many, guarded=False)[0]["figures"]["norm"] == 1.23456


def test_an_event_names_the_node_and_says_why() -> None:
    assert screening_events(PLAN, 2, [record("a", 0, why="", excluded=False)]) == []
    assert screening_events(PLAN, 2, [record("a", 0, 4), record("a", 0, 5), record("b", 1)]) == [
        "round 2 leaves out the update of client 4 of node a: it is odd; 1 more of this node",
        "round 2 leaves out the update of chunk 1 of node b: it is odd",
    ]
    (text,) = screening_events(PLAN, 2, [record("a", 0, excluded=False)])
    assert text.endswith("it is odd; it counts, because half of the updates or more are outside")


# ---------------------------------------------------------------- settings


class Sums(Transform):
    """Shows the server only a sum."""

    visible = Visible.ONLY_SUM


def test_what_the_server_cannot_see_is_not_screened() -> None:
    with plugins.registered(plugins.TRANSFORMS, EntryPoint("sums", f"{__name__}:Sums", plugins.TRANSFORMS)):
        hidden = settings(transforms=["sums"], screening="record")
        with pytest.raises(BadInput, match="the screening record compares updates, and with the transforms sums"):
            make_pipeline(hidden, FedAvg())
        make_pipeline(hidden.model_copy(update={"screening": ""}), FedAvg())


def test_a_screening_is_off_unless_chosen_and_its_options_are_checked() -> None:
    assert settings().screening == ""
    assert make_screening(settings()) is None
    chosen = settings(screening="exclude", screening_options={"max_norm_ratio": 4})
    assert chosen.screening_options == {"max_norm_ratio": 4, "min_cosine": -1}
    with pytest.raises(SettingsError, match=r"screening_options\.max_norm_ratio: must be at least 1"):
        settings(screening="exclude", screening_options={"max_norm_ratio": 0.5})
    with pytest.raises(SettingsError, match="unknown screening 'of' \\(available: exclude, record\\)"):
        settings(screening="of")


def test_a_replay_with_client_state_is_refused_as_for_missing_clients() -> None:
    with pytest.raises(BadInput, match="a run that lost clients cannot be replayed"):
        simulate(settings(screening="exclude"), data(), strategy=Scaffold, missing={1: [3]})
