"""The tables of published results: their tasks are valid, and their records are as the papers say."""

from __future__ import annotations

from statistics import fmean

import pytest
import table_niid
import table_robust
from records import RECORDS, read_records

from fedsim.settings import parse_settings
from tables import names, table

RESISTING = 3
"""The least number of robust rules that resist all attacks on IID data."""


@pytest.mark.parametrize("name", names())
def test_each_row_is_a_task_of_its_own_and_records_belong_to_rows(name: str) -> None:
    rows = table(name).rows()
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        parse_settings(dict(row.settings))
    assert read_records(name).keys() <= {row.name for row in rows}


@pytest.mark.parametrize("name", names())
def test_the_documentation_shows_what_is_recorded(name: str) -> None:
    assert (RECORDS / f"{name}.inc").read_text(encoding="utf-8") == table(name).markdown(read_records(name))


def test_at_least_three_rules_resist_all_attacks_on_iid_data() -> None:
    found = read_records("robust")
    rules = [*table_robust.RULES, *(f"{rule}+nnm" for rule in table_robust.MIXED)]
    costs = {rule: cost for rule in rules if (cost := table_robust.cost(found, "iid", rule)) is not None}
    if len(costs) <= RESISTING:
        pytest.skip(f"recorded are only {len(costs)} of {len(rules)} rules")
    assert sum(cost <= table_robust.RESISTS_WITHIN for rule, cost in costs.items() if rule != "fedavg") >= RESISTING


@pytest.mark.parametrize("data", [data for data in table_niid.DATA if data != table_niid.NOT_JUDGED])
@pytest.mark.parametrize("strategy", table_niid.STRATEGIES)
def test_accuracies_with_uneven_data_are_those_of_the_paper(data: str, strategy: str) -> None:
    found = read_records("niid")
    accuracies = [
        100 * value
        for seed in table_niid.DATA[data][2]
        if (one := found.get(f"{data}-{strategy}-seed{seed}")) and (value := one.figures["accuracy"]) is not None
    ]
    if not accuracies:
        pytest.skip("this row is not recorded yet")
    distance, allowed = table_niid.deviation(data, strategy, accuracies)
    assert distance <= allowed, f"{fmean(accuracies):.2f} %"
