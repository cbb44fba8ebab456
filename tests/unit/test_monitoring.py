"""The alert rules and the dashboard use only metrics and labels that the daemons serve."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from fedsim.metrics import NodeMetrics, ServerMetrics
from fedsim.receiver.metrics import ReceiverMetrics
from fedsim.web.metrics import WebMetrics

MONITORING = Path(__file__).parents[2] / "monitoring"
OF_PROMETHEUS = {"instance", "job", "le"}
SERIES = re.compile(r"\b(fedsim_\w+)(?:\{([^}]*)\})?")
BY = re.compile(r"\bby \(([^)]*)\)")


def registries() -> list[CollectorRegistry]:
    receiver = ReceiverMetrics()
    receiver.watch(lambda: {"connections_open": 0})
    return [ServerMetrics().registry, NodeMetrics().registry, receiver.registry, WebMetrics().registry]


def served() -> dict[str, set[str]]:
    """The labels of each series that a daemon can serve, by name; Python's clients keep them in `_labelnames`."""
    found: dict[str, set[str]] = {}
    for registry in registries():
        for collector, names in registry._collector_to_names.items():
            labels = set(getattr(collector, "_labelnames", ()))
            for name in names:
                found.setdefault(name, set()).update(labels)
        for family in registry.collect():
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    found.setdefault("fedsim_files_refused_total", set()).add("code")
    return found


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "fedsim.rules.yml").read_text(encoding="utf-8"))["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return list(json.loads((MONITORING / "fedsim-dashboard.json").read_text(encoding="utf-8"))["panels"])


def expressions() -> Iterator[tuple[str, str, str]]:
    """(where, expression, the texts that show its labels)."""
    for rule in rules():
        yield rule["alert"], rule["expr"], " ".join(rule["annotations"].values()).replace("$labels.", "")
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]


@pytest.mark.parametrize(("where", "expression", "texts"), list(expressions()))
def test_every_series_and_label_is_served(where: str, expression: str, texts: str) -> None:
    known, available = served(), set(OF_PROMETHEUS)
    series = SERIES.findall(expression)
    assert series or "up{" in expression or "process_" in expression, where
    for name, selectors in series:
        assert name in known, f"{where}: no daemon serves {name}"
        available |= known[name]
        assert set(re.findall(r"(\w+)=", selectors)) <= available, where
    for labels in BY.findall(expression):
        assert set(labels.split(", ")) <= available, where
    assert set(re.findall(r"\{\{ ?(\w+) ?\}\}", texts)) <= available, where


def test_every_alert_says_what_to_do() -> None:
    for rule in rules():
        assert rule["annotations"].keys() == {"summary", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}, rule["alert"]
    assert len({rule["alert"] for rule in rules()}) == len(rules())


def test_the_panels_fill_their_rows_without_overlap() -> None:
    cells = [
        (x, y)
        for panel in panels()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
