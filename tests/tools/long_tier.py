"""Runs the long tier, `make test-long`: all seeds, kills and variants, and everything on hosts.

It is divided into parts of at most half an hour. A part that passed is recorded under `.test-long/COMMIT/` with its
output, and is not run again for this commit; so a run that was interrupted goes on where it was. `make clean` forgets
what was recorded. With uncommitted changes nothing is recorded, because no commit says what was tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / ".test-long"
LIMIT_SECONDS = 30 * 60
SIDE_BY_SIDE = ("-n", os.environ.get("JOBS", "2"), "--dist", "loadfile")


@dataclass(frozen=True)
class Part:
    """Arguments for pytest, and what the part adds to the environment."""

    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


ON_BARE_HOSTS = (
    "tests/lab/test_upgrade_on_hosts.py",
    "tests/lab/test_interruptions_on_hosts.py",
    "tests/lab/test_releases_on_hosts.py",
)
COURSES = ("tests/unit/test_task_course.py", "tests/unit/test_node_tests.py", "tests/unit/test_buffered_machine.py")
PARTS = {
    "disasters": Part(("tests/unit/test_task_machine.py", "--seeds", "10000", "--timeout", "1500")),
    "courses": Part((*COURSES, "-k", "disasters", "--seeds", "5000", "--timeout", "1500", *SIDE_BY_SIDE)),
    "examples": Part(("tests/unit", "-m", "hypothesis", "--timeout", "1500"), {"HYPOTHESIS_PROFILE": "long"}),
    "unit": Part(("tests/unit", "-m", "long", *SIDE_BY_SIDE)),
    "attacks": Part(("tests/attacks", "-m", "long", *SIDE_BY_SIDE)),
    "integration": Part(("tests/integration", "-m", "long", *SIDE_BY_SIDE)),
    "browser": Part(("tests/browser", "-m", "long", *SIDE_BY_SIDE)),
    "hosts": Part(("tests/lab", *(part for path in ON_BARE_HOSTS for part in ("--ignore", path)))),
    "upgrade": Part((ON_BARE_HOSTS[0],)),
    "interruptions": Part((ON_BARE_HOSTS[1],)),
    "releases": Part((ON_BARE_HOSTS[2],)),
}
NO_TESTS_COLLECTED = 5


def commit() -> str | None:
    """The commit that is checked out, or None if the working tree differs from it."""
    git = ["git", "-C", str(ROOT)]
    changed = subprocess.run([*git, "status", "--porcelain"], check=True, capture_output=True, text=True).stdout
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    return None if changed else head


def run(name: str, folder: Path) -> bool:
    """Run one part, its output both shown and kept in `folder`; returns whether it passed."""
    part = PARTS[name]
    command = ["timeout", "--kill-after=60", str(LIMIT_SECONDS), sys.executable, "-m", "pytest", *part.arguments]
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{name}.log"
    with (
        unfinished.open("w", encoding="utf-8") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **part.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            log.write(line)
    passed = process.returncode in {0, NO_TESTS_COLLECTED}  # a part may have no test yet
    minutes = (time.monotonic() - started) / 60
    print(f"part {name}: {'passed' if passed else f'failed ({process.returncode})'} after {minutes:.1f} minutes")  # noqa: T201
    return passed


def main(names: list[str]) -> int:
    """Run the named parts, or all; a part that is recorded for this commit is skipped. Returns the exit code."""
    if unknown := sorted(set(names) - set(PARTS)):
        sys.exit(f"unknown part {', '.join(unknown)} (available: {', '.join(PARTS)})")
    at = commit()
    if at is None:
        print("The working tree has uncommitted changes: nothing will be recorded.")  # noqa: T201
    folder = RECORDS / (at or "uncommitted")
    failed = []
    for name in names or PARTS:
        record = folder / f"{name}.passed"
        if at and record.exists():
            print(f"part {name}: passed before at this commit, see {record.with_suffix('.log').relative_to(ROOT)}")  # noqa: T201
        elif run(name, folder):
            if at and commit() == at:
                record.touch()
        else:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
