"""A task's folder on the server: what is fixed, how far it came, and what counts. Every step becomes visible at once.

globalparam/<uid>/asked.json             until it begins: the plan that owners are to approve, and who is left out
globalparam/<uid>/plan.json              nodes, placement, chunks: fixed before round 1
globalparam/<uid>/counts.json            examples of each client: fixed before round 1
globalparam/<uid>/versions.json          of the workers that computed it, on each host; see `runtime.worker_versions`
globalparam/<uid>/phases.json            extension phases that are complete, if the task has any
globalparam/<uid>/waited.json            for how long the round that is under way has waited for updates
globalparam/<uid>/roster-000007.json     which updates count in round 7; written before anything is summed
globalparam/<uid>/round-000007.new/      being written by a worker
globalparam/<uid>/round-000007/          committed: model.npy, the strategy's state, round.json; broadcast.npy if
                                         clients receive more than the model

The JSON files carry the digest of their content (`spool.sealed`); round.json has those of the other files of its round.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedsim.data_schema import COMMON
from fedsim.errors import DamagedFile
from fedsim.learning.common_scale import CommonScale, Scale, fit
from fedsim.messages import read_message
from fedsim.spool.durable import make_folder, remove_file, remove_tree, sync_folder
from fedsim.spool.layout import BROADCAST_FILE, MODEL_FILE
from fedsim.spool.npy import check_digest
from fedsim.spool.sealed import read_sealed, write_sealed
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.task_events import CompletePhase, WriteRoster
from fedsim.update import Update

_ROUND = re.compile(r"round-(\d{6,7})")


@dataclass(frozen=True)
class Gathered:
    """What a round took until its roster stood: seconds since the round before, bytes to and from the nodes."""

    seconds: float
    bytes_sent: int
    bytes_received: int


class TaskDir:
    """The folder of one task; every method is safe to repeat after a crash."""

    def __init__(self, root: Path, uid: str) -> None:
        """`root` is the spool's globalparam folder."""
        self.path = root / uid

    # ---- fixed before round 1

    def read_plan(self) -> Plan | None:
        """The recorded plan; None for a task that has none yet."""
        path = self.path / "plan.json"
        content = read_sealed(path)
        if content is None and self.committed():
            raise DamagedFile(path, "it is missing, and rounds were committed")
        return None if content is None else read_message(Plan, content, "plan.json")

    def raw_plan(self) -> dict[str, Any] | None:
        """The recorded plan as JSON, which another version may have written; None if there is none."""
        content = read_sealed(self.path / "plan.json")
        return None if content is None else dict(content)

    def write_plan(self, plan: Plan) -> None:
        """Record the plan; from here on it is fixed."""
        make_folder(self.path)
        write_sealed(self.path / "plan.json", plan.model_dump(mode="json"))

    def write_raw_plan(self, plan: Mapping[str, Any]) -> None:
        """Record a plan as JSON, which another version may have written."""
        write_sealed(self.path / "plan.json", plan)

    def read_counts(self) -> tuple[int, ...] | None:
        """Examples of each client, as recorded."""
        content = read_sealed(self.path / "counts.json")
        return None if content is None else tuple(content)

    def write_counts(self, counts: tuple[int, ...]) -> None:
        """Record the examples of each client."""
        write_sealed(self.path / "counts.json", counts)

    # ---- approval by the nodes' owners

    def read_asked(self) -> dict[str, Any] | None:
        """What owners were asked to approve; None if nothing waits for them."""
        content = read_sealed(self.path / "asked.json")
        return None if content is None else dict(content)

    def write_asked(self, content: Mapping[str, Any]) -> None:
        """Record what owners are asked to approve."""
        make_folder(self.path)
        write_sealed(self.path / "asked.json", content)

    def remove_asked(self) -> None:
        """The task begins: nothing waits for owners any more."""
        remove_file(self.path / "asked.json")

    # ---- extension phases

    def completed_phases(self) -> tuple[CompletePhase, ...]:
        """The extension phases that are complete, with their answers: of the newest round, and before the training."""
        found = read_sealed(self.path / "phases.json") or ()
        return tuple(
            CompletePhase(item["phase"], item["round"], tuple(tuple(answer) for answer in item["answers"]))
            for item in found
        )

    def add_completed_phase(self, done: CompletePhase) -> None:
        """Record that an extension phase is complete; safe to repeat."""
        kept = [
            old
            for old in self.completed_phases()
            if old.round in {0, done.round} and (old.phase, old.round) != (done.phase, done.round)
        ]
        write_sealed(self.path / "phases.json", [asdict(item) for item in (*kept, done)])

    def common_scale(self, plan: Plan) -> Scale:
        """The numbers of the common scaling, once the nodes have reported their sums; empty for any other scaling."""
        if plan.data_schema is None or plan.data_schema.scaling != COMMON:
            return ()
        done = next((done for done in self.completed_phases() if done.phase == CommonScale.name), None)
        if done is None:
            return ()
        return fit({node: json.loads(content) for node, content in done.answers}, len(plan.data_schema.features))

    # ---- rosters

    def write_roster(self, roster: WriteRoster, gathered: Gathered) -> None:
        """Record which updates count in a round, and what gathering them took."""
        content = {
            "round": roster.round,
            "updates": [update.model_dump(mode="json", exclude_defaults=True) for update in roster.updates],
            "missing": roster.missing,
            "gathered": asdict(gathered),
            **({"cohort": roster.cohort} if roster.cohort else {}),
        }
        write_sealed(self._roster(roster.round), content)

    def read_roster(self, number: int) -> tuple[WriteRoster, Gathered] | None:
        """The round's roster and what gathering it took, if it was written."""
        content = read_sealed(self._roster(number))
        if content is None:
            return None
        updates = tuple(Update.model_validate(update) for update in content["updates"])
        roster = WriteRoster(content["round"], updates, tuple(content["missing"]), tuple(content.get("cohort", ())))
        return roster, Gathered(**content["gathered"])

    # ---- the deadline

    def write_waited(self, number: int, seconds: float) -> None:
        """Record for how long a round has waited for updates."""
        write_sealed(self.path / "waited.json", [number, seconds])

    def read_waited(self, number: int) -> float:
        """For how long the round has waited, as last recorded; 0 if that is not known."""
        content = read_sealed(self.path / "waited.json")
        return float(content[1]) if content is not None and content[0] == number else 0.0

    # ---- rounds

    def round(self, number: int) -> Path:
        """The folder of a committed round."""
        return self.path / f"round-{number:06d}"

    def new_round(self, number: int) -> Path:
        """Where a worker writes a round before it is committed."""
        return self.path / f"round-{number:06d}.new"

    def model(self, number: int) -> Path:
        """The model of a committed round."""
        return self.round(number) / MODEL_FILE

    def broadcast(self, number: int) -> Path:
        """What clients receive of a committed round: the model, with the strategy's arrays if there are any."""
        path = self.round(number) / BROADCAST_FILE
        return path if path.exists() else self.model(number)

    def commit(self, number: int, record: dict[str, Any]) -> None:
        """Commit the round with one rename, and remove its roster, which is no longer needed."""
        place = self.new_round(number)
        write_sealed(place / "round.json", record)  # makes the names of all files in the folder durable
        place.rename(self.round(number))
        sync_folder(self.path)
        remove_file(self._roster(number))

    def committed(self) -> list[int]:
        """The committed rounds that are still here, ascending."""
        if not self.path.is_dir():
            return []
        matches = (_ROUND.fullmatch(entry.name) for entry in self.path.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def record(self, number: int) -> dict[str, Any]:
        """What was recorded of a committed round."""
        path = self.round(number) / "round.json"
        content = read_sealed(path)
        if content is None:
            raise DamagedFile(path, "it is missing")
        return dict(content)

    def check(self, number: int, digests: Mapping[str, str]) -> None:
        """Check the files of a committed round against their recorded digests; `DamagedFile` names one that differs."""
        for name, digest in digests.items():
            check_digest(self.round(number) / name, digest)

    def completed_before(self) -> tuple[int, str] | None:
        """The last round, and its digest, of a completed task that got more rounds of which none is committed yet."""
        try:
            plan, committed = self.raw_plan(), self.committed()
            after = None if plan is None else plan.get("continued_after")
            return (after, str(self.record(after)["digest"])) if committed and committed[-1] == after else None
        except DamagedFile:
            return None

    def remove_round(self, number: int) -> None:
        """Clear a used-up round. It stops being a committed one before its files go."""
        gone = self.path / f".{self.round(number).name}.gone"
        remove_tree(gone)
        try:
            self.round(number).rename(gone)
        except FileNotFoundError:
            return
        remove_tree(gone)

    def copy_to(self, other: TaskDir, plan: Mapping[str, Any]) -> None:
        """Copy what is committed and what is fixed, with another plan. Files are never changed: most are hard links."""
        make_folder(other.path)
        last = -1
        for number in self.committed():
            last = number
            make_folder(other.round(number))
            _link(self.round(number).iterdir(), other.round(number))
        for done in self.completed_phases():
            if done.round <= last:
                other.add_completed_phase(done)
        _link((path for name in ("counts.json", "versions.json") if (path := self.path / name).exists()), other.path)
        other.write_raw_plan(plan)

    def remove(self) -> None:
        """Clear the folder."""
        remove_tree(self.path)

    def _roster(self, number: int) -> Path:
        return self.path / f"roster-{number:06d}.json"


def _link(files: Iterable[Path], folder: Path) -> None:
    for path in files:
        os.link(path, folder / path.name)
    sync_folder(folder)
