"""The log: a line that cannot be written ends no process, and is counted."""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from fedsim import log
from fedsim.refusal_log import RefusalLog
from fedsim.text import plain


def test_lines_that_were_lost_are_counted_and_reported_once_lines_can_be_written(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log.configure_logging()
    logger, before, kept = log.get_logger(), log.dropped_lines(), os.dup(2)
    try:
        with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
            os.dup2(full.fileno(), 2)
        logger.info("lost", number=1)
        logger.warning("lost", number=2)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    logger.info("written")
    logger.info("written")
    said = capfd.readouterr().err
    assert "lost" not in said.replace("log_lines_dropped", "")
    assert said.count("written") == 2
    assert said.count("log_lines_dropped") == 1
    assert "lines=2" in said
    assert log.dropped_lines() - before == 2


HOSTILE = "a\x1b[2Jb\nFEDSIM forged\r\u202eevil\u2028c\x07"


def test_text_of_others_reaches_neither_terminal_nor_message_raw(capfd: pytest.CaptureFixture[str]) -> None:
    log.configure_logging()
    try:
        int(HOSTILE + "1")
    except ValueError:
        log.get_logger().exception("refused", problem=HOSTILE, names=[HOSTILE])
    said = capfd.readouterr().err
    assert not set(said) & set("\x1b\r\x07\u202e\u2028")
    assert r"a\x1b[2Jb\nFEDSIM forged\r\u202eevil\u2028c\x07" in said
    assert not any(line.startswith("FEDSIM forged") for line in said.splitlines()[:1])


def test_the_message_in_the_journal_is_one_line_and_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    entries: list[dict[str, Any]] = []
    journal = SimpleNamespace(send=lambda **fields: entries.append(fields) or 0)
    monkeypatch.setitem(sys.modules, "cysystemd", SimpleNamespace(journal=journal))
    with pytest.raises(structlog.DropEvent):
        log._Journal("fedsim-test")(None, "warning", {"event": "refused", "problem": HOSTILE, "exception": "a\n  b"})
    (entry,) = entries
    assert entry["message"] == r"refused problem=a\x1b[2Jb\nFEDSIM forged\r\u202eevil\u2028c\x07" + "\na\n  b"
    assert entry["FEDSIM_PROBLEM"] == HOSTILE, "a field is exact: the journal stores it with its length"


def test_visible_text_of_any_language_stays_as_it_is() -> None:
    text = "数据集 “Größe” — naïve\u00a0café 5 %"
    assert plain(text) == text


def test_what_one_peer_causes_is_logged_at_a_bounded_rate_and_counted(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.configure_logging()
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    refusals = RefusalLog(lines=2)
    for number in range(50):
        refusals.warning("node-a", "file_refused", number=number)
    refusals.warning("node-b", "file_refused", number=1000)
    now[0] += 11
    refusals.warning("node-a", "file_refused", number=50)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split("number=")[1] for line in lines] == ["0", "1", "1000", "50"]
    assert ["not_logged_before=48" in line for line in lines] == [False, False, False, True]


def test_a_thousand_addresses_are_remembered_not_a_million() -> None:
    refusals = RefusalLog()
    for number in range(3000):
        refusals.warning(f"192.0.2.{number}", "connection_refused")
    assert len(refusals._rates) <= 1024
