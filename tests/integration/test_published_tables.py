"""Rows of the tables of published results, computed again: the same digest where it was recorded on such a machine."""

from __future__ import annotations

import pytest
from presence import real_data
from records import environment, read_records

from tables import table

pytestmark = pytest.mark.timeout(1500)
ROWS = [
    ("robust", "iid-multi_krum-min_max"),
    pytest.param("robust", "iid-median-alie", marks=pytest.mark.long),
    pytest.param("mcmahan", "2nn-iid-e1-b10-lr0.1", marks=pytest.mark.long),
]
POINTS = 0.01
"""How much the accuracy may differ on another kind of machine."""


@pytest.mark.parametrize(("name", "row_name"), ROWS)
def test_a_recorded_row_is_found_again(name: str, row_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("running.DATA", real_data("mnist").parent)
    recorded = read_records(name).get(row_name)
    if recorded is None:
        pytest.skip("this row is not recorded yet")
    (row,) = [row for row in table(name).rows() if row.name == row_name]
    found = table(name).compute(row)
    if environment().items() >= {key: recorded.environment[key] for key in ("torch", "capability", "machine")}.items():
        assert found.digest == recorded.digest
        assert found.figures == recorded.figures
    for figure in ("accuracy", "best_accuracy"):
        if (value := recorded.figures.get(figure)) is not None:
            assert found.figures[figure] == pytest.approx(value, abs=POINTS)
