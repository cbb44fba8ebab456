"""The table of all hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsim.cli.output import NONE, size
from fedsim.errors import FedsimError
from fedsim_fleet.fleet.report import HostReport, Unit

COLUMNS = ("host", "units", "version", "activity", "disk free", "memory free", "GPU", "clock", "certificate")
NUMBERS = ("disk free", "memory free", "clock", "certificate")


def row(name: str, answer: HostReport | FedsimError, now: float) -> list[str]:
    """The row of a host; if it did not answer, with the reason."""
    if isinstance(answer, FedsimError):
        return [name, "does not answer", NONE, str(answer).splitlines()[0], *[NONE] * (len(COLUMNS) - 4)]
    days = answer.days_left(now)
    return [
        name,
        unit_summary(answer.units),
        answer.version or NONE,
        answer.activity or NONE,
        size(answer.disk.free),
        size(answer.memory.free),
        "; ".join(answer.gpus) or NONE,
        f"{answer.skew:+.1f} s",
        NONE if days is None else f"{days:.0f} days",
    ]


def unit_summary(units: tuple[Unit, ...]) -> str:
    """The number of active units, or the names of those that are not active."""
    inactive = [f"{short_name(unit.name)} {unit.state}" for unit in units if unit.state != "active"]
    if not inactive:
        return f"{len(units)} active"
    return ", ".join(inactive)


def short_name(name: str) -> str:
    """A unit's name without the common prefix and suffix."""
    return name.removeprefix("fedsim-").removesuffix(".service")


def is_healthy(answer: HostReport | FedsimError) -> bool:
    """Whether the host answers and all its units are active."""
    return isinstance(answer, HostReport) and all(unit.state == "active" for unit in answer.units)


def document(answers: Mapping[str, HostReport | FedsimError], now: float) -> dict[str, Any]:
    """The status as JSON."""
    hosts = []
    for name, answer in answers.items():
        if isinstance(answer, FedsimError):
            hosts.append({"host": name, "answers": False, "problem": str(answer)})
            continue
        fields = answer.model_dump(mode="json", exclude={"certificates", "diagnostics", "clock", "duration", "revoked"})
        days = answer.days_left(now)
        hosts.append(
            {"host": name, "answers": True, **fields, "skew_seconds": answer.skew, "certificate_days_left": days}
        )
    return {"hosts": hosts}
