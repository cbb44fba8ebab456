"""Tasks that gather statistics in the web: the form, the page with its table and plots, and what others do not see."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_web_submit import fields_of
from web_support import Site, make_site

from fedsim.learning.column_statistics import Column, StatisticsRule, node_statistics
from fedsim.learning.examples import Examples
from fedsim.learning.pooled_statistics import pooled_statistics
from fedsim.store.records import TaskState

WORDS = ("healthy", "<b>ill</b>")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path)
    yield made
    made.store.close()


def answer_of(seed: int, count: int, *, guarded: bool = False) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    columns = {"age": Column(rng.normal(50, 15, count)), "<i>dose</i>": Column(rng.gamma(2, 8, count))}
    columns["dose missing"] = Column(np.where(np.arange(count) % 3, columns["age"].values, np.nan))
    labels = (np.arange(count) % 5 == 0).astype(np.int64)
    rule = StatisticsRule(allowed="sums", min_count=10, guarded=guarded)
    found = node_statistics(columns, Examples(np.zeros((count, 1), np.float32), labels), WORDS, rule)
    return found.model_dump(mode="json")


def gathered(site: Site, owner: str = "lin") -> int:
    """A completed task with the statistics of three nodes, of which one sent nonsense."""
    browser = site.user(owner)
    form = fields_of(browser.get("/tasks/new").text)
    assert browser.post("/tasks/new", data=form | {"kind": "statistics", "dataset": "ward"}).status_code == 303
    task = site.store.tasks.newest()[0]
    assert task.settings.partition == "local"
    assert task.settings.num_rounds == 10, "what the form has of training does not count"
    answers = {"node-a": answer_of(1, 400), "node-b": answer_of(2, 900, guarded=True), "node-c": {}}
    site.store.statistics.record(task.uid, pooled_statistics(answers, ("age",), WORDS))
    for state in (TaskState.STARTING, TaskState.RUNNING, TaskState.COMPLETED):
        site.store.tasks.move(task.uid, state, reason="statistics of node-a, node-b", now=site.now)
    return task.number


def test_the_page_has_a_table_with_plots_and_the_labels_by_node(site: Site) -> None:
    number = gathered(site)
    page = site.admin().get(f"/tasks/{number}").text
    assert "Statistics of ward" in page
    assert page.count('<svg class="histogram"') == 3
    assert ">node-a</text>" in page, "a picture of the labels"
    assert "Rounded by their owners: node-b." in page
    assert "node-c does not count: it reported no valid statistics" in page
    assert "≈ 900" in page
    assert "<i>dose</i>" not in page
    assert "<b>ill</b>" not in page
    for of_training in ('id="partition"', "<progress", "Clients in each round", ">Strategy<"):
        assert of_training not in page, of_training


def test_the_lists_show_no_rounds_and_no_result_of_it(site: Site) -> None:
    gathered(site)
    page = site.admin().get("/admin/tasks").text
    assert "Statistics of ward" in page
    assert "<progress" not in page


def test_others_see_nothing_and_the_api_gives_all_columns(site: Site) -> None:
    number = gathered(site)
    assert site.user("other").get(f"/api/v1/tasks/{number}/statistics").status_code == 404
    found = site.admin().get(f"/api/v1/tasks/{number}/statistics").json()["statistics"]
    assert [column["name"] for column in found["columns"]] == ["age", "<i>dose</i>", "dose missing"]
    assert found["columns"][2]["missing"] == pytest.approx(134 + 300, abs=10)


def test_the_form_again_keeps_the_kind(site: Site) -> None:
    number = gathered(site)
    form = fields_of(site.admin().get(f"/tasks/new?from={number}").text)
    assert (form["kind"], form["dataset"]) == ("statistics", "ward")
