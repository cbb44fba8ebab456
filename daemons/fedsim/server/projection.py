"""Records a running task in the database: rounds, metrics, checkpoints, and progress.

The committed round folders are authoritative; the rows are derived from them, with the same content after a restart.
The methods that write rows (`open`, `write_round`, `saved`) are called in the writer's thread.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from fedsim.learning.common_scale import fitted
from fedsim.learning.objectives import metrics_of
from fedsim.server.contributions import kept_contributions, metrics_of_training
from fedsim.server.loss_rise import loss_rise
from fedsim.server.node_metrics import with_node_tests
from fedsim.server.participation import count_round, expected_of, expected_of_roster, summed_of
from fedsim.server.screened import counted, kept_figures, missing_with_excluded, screening_events
from fedsim.server.task_dir import Gathered, TaskDir
from fedsim.spool.layout import BROADCAST_FILE, MODEL_FILE
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task import TaskMachine
from fedsim.state_machines.task_events import Commit, MetricPairs, RecordNodeTests, WriteRoster
from fedsim.state_machines.task_record import NO_TOTALS
from fedsim.store import Store
from fedsim.store.records import Checkpoint, Event, Progress, RoundRecord
from fedsim.text import rounded
from fedsim.worker.jobs import CheckpointSaved, ModelMade, Tested

LISTED_MISSING = 50
CAME_LATE = "came online after the task was planned"


def checkpoint_name(number: int, round_number: int) -> str:
    """The path of a checkpoint, relative to the checkpoints folder."""
    return f"task-{number}/round-{round_number:04d}.safetensors"


def missing_clients(roster: WriteRoster) -> str:
    """The missing clients of a round, shortened for messages; the round's record lists all."""
    shown = ", ".join(map(str, roster.missing[:LISTED_MISSING]))
    more = len(roster.missing) - LISTED_MISSING
    return f"{shown} and {more} more" if more > 0 else shown


class TaskProjection:
    """The records of one task."""

    def __init__(self, plan: Plan, folder: TaskDir, store: Store) -> None:
        self._plan = plan
        self._folder = folder
        self._store = store
        self._rounds: dict[int, RoundRecord] = {}
        self._files: dict[int, dict[str, str]] = {}
        self._seconds: dict[int, dict[str, float]] = defaultdict(dict)
        self._lengths: dict[int, float] = {}
        self._bytes_sent: dict[int, int] = defaultdict(int)
        self._bytes_received: dict[int, int] = defaultdict(int)
        self._opened_at = time.monotonic()
        self._shown: Progress | None = None
        self._rise: str | None = None
        self._known_bases: dict[int, str] = {}
        self.participation: dict[str, dict[str, int]] = {}
        self.left_out = dict(plan.left_out)

    def open(self) -> None:
        """Read the rows, and write those of committed rounds that are missing."""
        task = self._store.tasks.by_uid(self._plan.task)
        self.participation = {} if task is None else task.participation
        self.left_out = {**({} if task is None else task.left_out), **dict(self._plan.left_out)}
        self._store.tasks.set_nodes(self._plan.task, self._plan.nodes, self.left_out)
        self._store.tasks.set_plan(self._plan.task, self._plan.record.model_dump(mode="json"))
        rounds = {record.round: record for record in self._store.rounds.of_task(self._plan.number)}
        for number in self._folder.committed():
            rounds[number] = self._project(number, rounds.get(number))
        self._rounds = rounds
        self._rise = loss_rise(rounds.values())
        self._store.tasks.set_notes(self._plan.task, self._notes())

    # ---- rounds

    def record_sent(self, number: int, size: int) -> None:
        """Count bytes that were sent to nodes for the round."""
        self._bytes_sent[number] += size

    def closed(self, number: int, received: int) -> Gathered:
        """Record that the round has its updates, of `received` bytes."""
        gathered = Gathered(time.monotonic() - self._opened_at, self._bytes_sent[number], received)
        self._seconds[number]["train"] = gathered.seconds
        self._bytes_received[number] = received
        return gathered

    def resume(self, number: int, gathered: Gathered) -> None:
        """Restore the duration and bytes of a round whose roster was found after a restart."""
        self._opened_at = time.monotonic() - gathered.seconds
        self._seconds[number]["train"] = gathered.seconds
        self._bytes_sent[number] = gathered.bytes_sent
        self._bytes_received[number] = gathered.bytes_received

    def made(self, made: ModelMade) -> None:
        """Record that a worker computed the round's model."""
        self._seconds[made.round]["aggregate"] = made.seconds
        self._made = made

    def close_round(self, commit: Commit, roster: WriteRoster | None) -> tuple[RoundRecord, dict[str, Any]]:
        """The record of a round that is about to be committed, and the content of its round.json."""
        number, losses, now = commit.round, commit.losses, time.monotonic()
        self._lengths[number] = now - self._opened_at
        screened = self._made.screening
        updates = counted(roster.updates, screened) if roster else ()
        expected = expected_of_roster(self._plan, roster) if roster else {}
        examples = sum(update.num_examples for update in updates)
        record = RoundRecord(
            round=number,
            digest=self._made.digest,
            num_examples=rounded(examples) if self._plan.guarded else examples,
            train_metrics=metrics_of_training(updates),
            seconds={**self._seconds.pop(number, {}), "all": self._lengths[number]},
            bytes_sent=self._bytes_sent.pop(number, 0),
            bytes_received=self._bytes_received.pop(number, 0),
            cohort_size=sum(expected.values()),
            missing=tuple(missing_with_excluded(self._plan, roster, screened)) if roster else (),
            missing_share=round(commit.missing_share, 2 if self._plan.guarded else 6),
            screening=kept_figures(screened, guarded=self._plan.guarded),
            contributions=kept_contributions(self._plan, self._made.contributions),
            finished_at=time.time(),
            buffered=summed_of(self._plan, roster),
        )
        self._opened_at = now
        self._rounds[number] = record
        self._files[number] = dict(self._made.files)
        if roster is not None:
            self._count(record, expected)
        further: dict[str, Any] = {"losses": losses} if losses else {}
        if commit.totals != NO_TOTALS:
            further["totals"] = asdict(commit.totals)
        if self._plan.buffering is not None:
            further |= {"used": commit.used, "bases": self._bases(number + 1)}
        return record, {**asdict(record), "files": self._made.files, "expected": expected, **further}

    def screening_events(self, number: int) -> list[str]:
        """What is to be said about the updates of a round that has just been closed."""
        return screening_events(self._plan, number, self._made.screening)

    def _count(self, record: RoundRecord, expected: Mapping[str, int]) -> None:
        self.participation = count_round(self._plan, self.participation, record, expected)

    def write_round(self, record: RoundRecord, participation: Mapping[str, Mapping[str, int]] | None = None) -> None:
        """Write a round's row, who took part up to it, and a remark if the loss has risen beyond all measure."""
        self._store.rounds.record(self._plan.task, record, participation)
        if self._rise is None and (rise := loss_rise([*self._rounds.values(), record])):
            self._rise = rise
            self._store.tasks.set_notes(self._plan.task, self._notes())
            self.event("note", rise)()

    def _notes(self) -> tuple[str, ...]:
        return (*self._plan.notes, *([self._rise] if self._rise else []))

    def _project(self, number: int, known: RoundRecord | None) -> RoundRecord:
        content = self._folder.record(number)
        self._files[number] = content.pop("files")
        expected = content.pop("expected", None)  # an older version has not recorded it
        for name in ("losses", "totals", "used"):
            content.pop(name, None)
        self._known_bases |= {int(base): digest for base, digest in content.pop("bases", {}).items()}
        lists = {name: tuple(content.get(name, ())) for name in ("missing", "screening", "buffered")}
        record = RoundRecord(**{**content, **lists})
        if known is not None and (known.tested or known.node_metrics):
            record = known
        if known is None and number:  # its row and the participation up to it are written together
            self._count(record, expected_of(self._plan, number) if expected is None else expected)
        self.write_round(record, self.participation)
        return record

    def tested(self, tested: Tested) -> RoundRecord:
        """Add the result of a test to the round's record, and return it."""
        known = self._rounds[tested.round]
        record = replace(
            known,
            metrics=tested.metrics,
            class_metrics=tested.class_metrics,
            seconds={**known.seconds, "evaluate": tested.seconds},
        )
        self._rounds[tested.round] = record
        return record

    def node_tested(self, action: RecordNodeTests) -> RoundRecord:
        """Add what nodes reported to the round's record, and return it."""
        record = with_node_tests(self._plan, self._rounds[action.round], action)
        self._rounds[action.round] = record
        return record

    @property
    def node_tested_rounds(self) -> frozenset[int]:
        """The rounds of which the nodes' tests are recorded."""
        return frozenset(number for number, record in self._rounds.items() if record.node_metrics)

    def tests(self, committed: int) -> tuple[tuple[int, MetricPairs], ...]:
        """The metrics of the tested rounds up to the committed one."""
        tested = sorted(number for number, record in self._rounds.items() if record.tested and number <= committed)
        return tuple((number, tuple(self._rounds[number].metrics.items())) for number in tested)

    def keep_best(self, number: int) -> None:
        """Write to the task's row that a round's model is the best so far."""
        metric = self._plan.settings.keep_best
        value = self._rounds[number].metrics.get(metric)
        self._store.tasks.set_best(self._plan.task, {"round": number, "metric": metric, "value": value})

    def is_tested(self, number: int) -> bool:
        """Whether the round's metrics are recorded."""
        record = self._rounds.get(number)
        return record is not None and record.tested

    def file_digest(self, number: int) -> str:
        """The digest of a committed round's model file, used in transfers."""
        return self._files[number][MODEL_FILE]

    def broadcast_digest(self, number: int) -> str:
        """The digest of the file that clients receive of a committed round."""
        return self._files[number].get(BROADCAST_FILE) or self.file_digest(number)

    def base_digest(self, number: int) -> str | None:
        """The digest of the file from which clients train in a round; None if the round before is not committed."""
        return self.broadcast_digest(number - 1) if number - 1 in self._files else self._known_bases.get(number)

    def _bases(self, newest: int) -> dict[int, str]:
        """The same for each asynchronous round in which an update can have begun that a round from `newest` on uses."""
        oldest = newest - self._plan.buffering.max_staleness if self._plan.buffering else newest
        found = {number: self.base_digest(number) for number in range(max(1, oldest), newest + 1)}
        return {number: digest for number, digest in found.items() if digest is not None}

    def files(self, number: int) -> dict[str, str]:
        """The digests of a committed round's files, by name."""
        return self._files[number]

    def digest(self, number: int) -> str | None:
        """The digest of a committed round's parameters."""
        record = self._rounds.get(number)
        return record.digest if record else None

    @property
    def latest_headline(self) -> tuple[str, float | None]:
        """The name of the task's headline metric, and its value in the newest round that was tested."""
        name = metrics_of(self._plan.settings).headline_name
        tested = [number for number, record in self._rounds.items() if record.tested]
        return name, self._rounds[max(tested)].metrics.get(name) if tested else None

    # ---- checkpoints

    def about(self, number: int) -> dict[str, Any]:
        """The metadata of a checkpoint."""
        record = self._rounds[number]
        schema = self._plan.data_schema
        return {
            "task": self._plan.number,
            "uid": self._plan.task,
            "round": number,
            "settings": self._plan.settings.model_dump(mode="json"),
            "metrics": {**record.metrics, **record.class_metrics, **record.train_metrics},
            "parameters_digest": record.digest,
            "initial": self._plan.initial and self._plan.initial.model_dump(exclude_none=True),
            "nodes": [share.shown.model_dump(mode="json") for share in self._plan.shares],
            "chunk_clients": self._plan.chunk_clients,
            "dataset_digest": self._plan.dataset_digest,
            "data_schema": schema and fitted(schema, self._folder.common_scale(self._plan)).model_dump(mode="json"),
            "schema_from": self._plan.schema_from,
            "left_out": self.left_out,
            "missing": {past: list(self._rounds[past].missing) for past in self._lacking(number)},
            "excluded": {past: found for past in self._lacking(number) if (found := excluded_by(self._rounds[past]))},
            "notes": list(self._notes()),
            **({"buffered": self._summed(number)} if self._plan.buffering else {}),
            **({"node_metrics": record.node_metrics} if record.node_metrics else {}),
        }

    def _lacking(self, through: int) -> list[int]:
        """The rounds up to this one that went on without clients."""
        return sorted(number for number, record in self._rounds.items() if record.missing and number <= through)

    def _summed(self, through: int) -> dict[int, list[list[int]]]:
        """What the asynchronous rounds up to this one summed, as `simulate(replay=…)` takes it."""
        rounds = sorted((number, record.buffered) for number, record in self._rounds.items() if 0 < number <= through)
        return {number: [list(one) for one in buffered] for number, buffered in rounds}

    def saved(self, saved: CheckpointSaved) -> None:
        """Write the row of a checkpoint that was saved."""
        path = checkpoint_name(self._plan.number, saved.round)
        self._store.checkpoints.record(
            self._plan.task, Checkpoint(saved.round, path, saved.digest, saved.size, time.time())
        )

    # ---- nodes

    def came_late(self, node: str) -> Callable[[], None] | None:
        """What records that a node came online after the task was planned; None if that it takes no part is known."""
        if node in self._plan.nodes or node in self.left_out:
            return None
        self.left_out = {**self.left_out, node: CAME_LATE}
        left_out, event = self.left_out, self.event("left_out", f"{node} takes no part: it {CAME_LATE}")

        def write() -> None:
            self._store.tasks.set_nodes(self._plan.task, self._plan.nodes, left_out)
            event()

        return write

    # ---- events and progress

    def event(self, kind: str, text: str) -> Callable[[], None]:
        """What writes the row of a remark about the task that is made now."""
        return partial(self._store.events.add, Event(time.time(), kind, text, task=self._plan.number))

    def new_progress(self, machine: TaskMachine, waiting_for: tuple[str, ...]) -> Progress | None:
        """What the task is doing now, and for whom it waits; None if that has not changed since the last call."""
        until = machine.wake_at
        progress = Progress(
            round=machine.round,
            phase=machine.step,
            waiting_for=waiting_for,
            waiting_until=None if until is None else round(time.time() + until - time.monotonic()),
            eta_seconds=remaining_seconds(self._lengths, machine.last_round - max(machine.committed, 0)),
        )
        shown = self._shown
        # A deadline that differs by less than a second is unchanged; one that has disappeared is not.
        same_moment = shown is not None and (until is None) == (shown.waiting_until is None)
        if shown is not None and same_moment and replace(progress, waiting_until=shown.waiting_until) == shown:
            return None
        self._shown = progress
        return progress


def excluded_by(record: RoundRecord) -> list[dict[str, Any]]:
    """The updates that a round's screening left out, without their figures."""
    names = ("node", "chunk", "client", "outside")
    return [{name: found[name] for name in names} for found in record.screening if found["excluded"]]


def remaining_seconds(lengths: Mapping[int, float], rounds_left: int) -> float | None:
    """The estimated time left from the durations (seconds) of the newest rounds; None before the first.

    Rounds 0 and 1 include starting workers and loading data, so they count only until a later round is known.
    """
    warm = [number for number in lengths if number > 1] or [number for number in lengths if number] or list(lengths)
    newest = [lengths[number] for number in sorted(warm)[-5:]]
    return sum(newest) / len(newest) * rounds_left if newest else None
