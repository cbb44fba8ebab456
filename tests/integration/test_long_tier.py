"""The long tier: a part that passed is not run again for its commit, and every test has a part."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import long_tier
import pytest
from long_tier import ROOT, Part

MARKED = re.compile(r"pytest\.mark\.long")


@pytest.fixture(autouse=True)
def two_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One part that passes as often as it is run, one that fails."""
    monkeypatch.setattr(long_tier, "RECORDS", tmp_path / ".test-long")
    monkeypatch.setattr(long_tier, "PARTS", {"passes": Part(("--version",)), "fails": Part(("nothing.py",))})
    monkeypatch.setattr(long_tier, "ROOT", tmp_path)


def test_a_part_that_passed_is_not_run_again_for_its_commit(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(long_tier, "commit", lambda: "0123456")
    assert long_tier.main([]) == 1
    first = capfd.readouterr().out
    assert "part passes: passed after" in first
    assert "part fails: failed (4)" in first
    assert first.endswith("failed: fails\n")
    assert long_tier.main(["passes"]) == 0
    assert "passed before at this commit" in capfd.readouterr().out
    monkeypatch.setattr(long_tier, "commit", lambda: "89abcde")
    assert long_tier.main(["passes"]) == 0
    assert "part passes: passed after" in capfd.readouterr().out


def test_with_uncommitted_changes_nothing_is_recorded(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(long_tier, "commit", lambda: None)
    for _ in range(2):
        assert long_tier.main(["passes"]) == 0
        assert "part passes: passed after" in capfd.readouterr().out


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(SystemExit, match=r"unknown part all \(available: passes, fails\)"):
        long_tier.main(["all"])


def test_every_marked_test_is_in_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if MARKED.search(path.read_text(encoding="utf-8"))]
    run = {part.arguments[0] for part in long_tier.PARTS.values() if part.arguments[1:3] == ("-m", "long")}
    run |= {part.arguments[0] for part in long_tier.PARTS.values() if "-m" not in part.arguments}
    assert {str(path.parent.relative_to(ROOT)) for path in files} <= run


def test_the_targets_of_make_that_others_call_exist() -> None:
    callers = [".ci/run", ".github/workflows/check.yml", "docs/how-to/develop.md", "CONTRIBUTING.md", "README.md"]
    text = "\n".join((ROOT / caller).read_text(encoding="utf-8") for caller in callers)
    called = set(re.findall(r"\bmake ([a-z][a-z-]*)", text)) | {
        "test-fast",
        "test-integration",
        "test-browser",
        "test-lab",
    }
    for target in called:
        subprocess.run(["/usr/bin/env", "make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)
