"""What is kept of a task that failed or was stopped, and that it continues from that alone."""

from __future__ import annotations

from pathlib import Path

from fedsim.server.kept_states import KeptStates
from fedsim.server.task_dir import Gathered, TaskDir
from fedsim.spool.sealed import write_sealed
from fedsim.state_machines.task_events import CompletePhase, WriteRoster

UID = "a" * 32


def ended_task(root: Path) -> TaskDir:
    """A task that ended in round 3, while round 1 was still to be tested."""
    folder = TaskDir(root, UID)
    folder.path.mkdir(parents=True)
    write_sealed(folder.path / "plan.json", {"task": UID, "settings": {"num_rounds": 6}, "of a later version": 1})
    folder.write_counts((5, 6))
    for phase, number in (("before", 0), ("within", 3)):
        folder.add_completed_phase(CompletePhase(phase, number, (("node-a", "{}"),)))
    for number in (1, 2):
        folder.new_round(number).mkdir()
        (folder.new_round(number) / "model.npy").write_bytes(b"model %d" % number)
        folder.commit(number, {"round": number})
    folder.new_round(3).mkdir()
    folder.write_waited(3, 7.0)
    folder.write_roster(WriteRoster(3, (), (1,)), Gathered(1.0, 2, 3))
    return folder


def test_a_kept_state_is_that_of_the_last_committed_round_under_another_uid(tmp_path: Path) -> None:
    kept = KeptStates(tmp_path / "server")
    ended = ended_task(tmp_path / "tasks")
    for _ in range(2):  # a crash before the row was changed repeats it
        resumable = kept.keep(7, ended)
    ended.remove()
    assert (resumable.round, resumable.problem, kept.numbers()) == (2, None, [7])
    assert resumable.uid not in {None, UID}
    assert not kept.restore(7, TaskDir(tmp_path / "tasks", UID), 6), "the row names another uid"
    folder = TaskDir(tmp_path / "tasks", resumable.uid or "")
    assert kept.restore(7, folder, 6)
    assert kept.numbers() == []
    assert (folder.committed(), folder.read_counts()) == ([1, 2], (5, 6))
    assert folder.model(2).read_bytes() == b"model 2"
    assert folder.raw_plan() == {
        "task": resumable.uid,
        "resumes": UID,
        "settings": {"num_rounds": 6},
        "of a later version": 1,
    }
    assert [(done.phase, done.round) for done in folder.completed_phases()] == [("before", 0)]
    assert folder.read_roster(3) is None, "round 3 begins again, with all clients"
    assert folder.read_waited(3) == 0


def test_a_completed_task_is_restored_with_the_rounds_that_it_got(tmp_path: Path) -> None:
    kept = KeptStates(tmp_path / "server")
    ended = ended_task(tmp_path / "tasks")
    ended.write_raw_plan({"task": UID, "settings": {"num_rounds": 2, "seed": 5}})
    resumable = kept.keep(7, ended)
    ended.remove()
    folder = TaskDir(tmp_path / "tasks", resumable.uid or "")
    assert kept.restore(7, folder, 5)
    expected = {
        "task": resumable.uid,
        "resumes": UID,
        "settings": {"num_rounds": 5, "seed": 5},
        "continued_after": 2,
    }
    assert folder.raw_plan() == expected
    again = kept.keep(7, folder)
    other = TaskDir(tmp_path / "tasks", again.uid or "")
    assert kept.restore(7, other, 5)
    assert other.raw_plan() == expected | {"task": again.uid, "resumes": resumable.uid}


def test_what_cannot_be_resumed_has_a_reason(tmp_path: Path) -> None:
    kept = KeptStates(tmp_path / "server")
    folder = ended_task(tmp_path / "tasks")
    for number in (1, 2):
        folder.remove_round(number)
    resumable = kept.keep(7, folder)
    assert "before its first model" in (resumable.problem or "")
    assert (resumable.uid, kept.numbers()) == (None, [])


def test_a_damaged_plan_is_named_as_the_reason(tmp_path: Path) -> None:
    folder = ended_task(tmp_path / "tasks")
    (folder.path / "plan.json").write_bytes(b"{}")
    assert "plan.json" in (KeptStates(tmp_path / "server").keep(7, folder).problem or "")
