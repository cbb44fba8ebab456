"""The table of all hosts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsim.cli.output import NONE, size
from fedsim.errors import FedsimError
from fedsim_fleet.fleet.report import HostReport, Unit

COLUMNS = ("host", "units", "version", "doing", "disk free", "memory free", "GPU", "clock", "certificate")
NUMBERS = ("disk free", "memory free", "clock", "certificate")


def row(name: str, told: HostReport | FedsimError, now: float) -> list[str]:
    """A host's line; of one that did not answer, why."""
    if isinstance(told, FedsimError):
        return [name, "does not answer", NONE, str(told).splitlines()[0], *[NONE] * (len(COLUMNS) - 4)]
    days = told.days_left(now)
    return [
        name,
        units(told.units),
        told.version or NONE,
        told.doing or NONE,
        size(told.disk.free),
        size(told.memory.free),
        "; ".join(told.gpus) or NONE,
        f"{told.skew:+.1f} s",
        NONE if days is None else f"{days:.0f} days",
    ]


def units(units: tuple[Unit, ...]) -> str:
    """All is well in one word, else those that are not."""
    bad = [f"{short(unit.name)} {unit.state}" for unit in units if unit.state != "active"]
    if not bad:
        return f"{len(units)} active"
    return ", ".join(bad)


def short(name: str) -> str:
    """A unit's name without what all have in common."""
    return name.removeprefix("fedsim-").removesuffix(".service")


def well(told: HostReport | FedsimError) -> bool:
    """Whether the host answers, and everything that it should run is active."""
    return isinstance(told, HostReport) and all(unit.state == "active" for unit in told.units)


def document(answers: Mapping[str, HostReport | FedsimError], now: float) -> dict[str, Any]:
    """The same for programs."""
    hosts = []
    for name, told in answers.items():
        if isinstance(told, FedsimError):
            hosts.append({"host": name, "answers": False, "problem": str(told)})
            continue
        told_here = told.model_dump(mode="json", exclude={"certificates", "deep", "clock", "took", "revoked"})
        days = told.days_left(now)
        hosts.append(
            {"host": name, "answers": True, **told_here, "skew_seconds": told.skew, "certificate_days_left": days}
        )
    return {"hosts": hosts}
