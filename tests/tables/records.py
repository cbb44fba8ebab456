"""The rows of tables of published results, and what is recorded of them."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fedsim import __version__
from fedsim.worker.host_jobs import processor_kind

RECORDS = Path(__file__).parents[2] / "docs" / "reference" / "tables"


@dataclass(frozen=True)
class Row:
    """A task: the settings that are not the defaults, and what `simulate` takes besides."""

    name: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """What a row gave: figures by name, the digest of the final model, and where and how long it ran."""

    figures: Mapping[str, float | None]
    digest: str
    seconds: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


def environment() -> dict[str, str]:
    """What a digest depends on besides the settings."""
    return {
        "fedsim": __version__,
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": f"{platform.machine()} {processor_kind()}",
    }


def read_records(name: str) -> dict[str, Found]:
    """What is recorded of a table, by the names of its rows."""
    path = RECORDS / f"{name}.json"
    if not path.exists():
        return {}
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {
        row: Found(one["figures"], one["digest"], one["seconds"], one["environment"]) for row, one in stored.items()
    }


def write_record(name: str, row: Row, found: Found) -> None:
    """Record a row, in a line of its own; the others stay."""
    path = RECORDS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stored[row.name] = {"settings": dict(row.settings), **asdict(found)}
    lines = [f"{json.dumps(key)}: {json.dumps(stored[key], ensure_ascii=False)}" for key in sorted(stored)]
    new = path.with_suffix(".new")
    new.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    new.rename(path)
