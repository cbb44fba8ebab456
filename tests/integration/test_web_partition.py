"""The partition of a task, submitted or not, is shown where the data's owners show the counts of their labels."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_web_submit import fields_of
from web_support import Browser, Site, make_site

from fedsim.messages import EngineInfo, GuardInfo
from fedsim.state_machines.shares import NodeShare, RecordedPlan

COUNTS = (600,) * 10
MOST_ADDED = 60_000
"""Bytes that a picture adds to a page."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path)
    yield made
    made.store.close()


def announce(site: Site, name: str = "node-1", **said: Any) -> None:
    site.now += 1
    site.node(name, **{"num_train": 6000, **said})


def preview(browser: Browser, form: dict[str, str], **changed: str) -> str:
    answer = browser.post("/tasks/new", data=form | {"preview": "1"} | changed)
    assert answer.status_code in {200, 422}
    return answer.text


def test_the_form_shows_the_partition_before_anything_is_submitted(site: Site) -> None:
    announce(site, label_counts=COUNTS)
    browser = site.user("lin")
    empty = browser.get("/tasks/new").text
    form = fields_of(empty)
    page = preview(browser, form, partition="dirichlet", num_clients="1000", title="kept", min_partition_size="1")
    assert len(page) < len(empty) + MOST_ADDED
    assert "<svg" in page
    assert "The picture has the first 100 of 1000 clients." in page
    assert "are an example" not in page
    assert fields_of(page)["title"] == "kept"
    assert "the labels of a client are an example" in preview(browser, form, partition="iid")
    assert "at most 3000" in preview(browser, form, num_clients="5000"), "problems are shown as when it is submitted"
    assert site.store.tasks.newest() == []


def test_what_owners_do_not_show_is_not_there(site: Site) -> None:
    browser = site.user("lin")
    form = fields_of(browser.get("/tasks/new").text)
    assert "No node has announced this data set." in preview(browser, form)
    announce(site)
    page = preview(browser, form)
    assert "do not show how many examples have each label" in page
    assert "<svg" not in page.split('id="partition-shown"')[1]
    guard = GuardInfo(secret_digest="a" * 64, block_size=20, num_blocks=300)
    announce(site, guard=guard, label_counts=COUNTS)
    assert "each node divides its own" in preview(browser, form)
    announce(site, "node-2")
    page = preview(browser, form, partition="local")
    assert "Not shown, by their owners' choice: node-2." in page
    assert ">node-1</text>" in page


def test_api_page_and_csv_of_a_task_show_what_its_plan_records(site: Site) -> None:
    announce(site, label_counts=COUNTS)
    browser = site.user("lin")
    settings = {"partition": "labels_per_client", "num_clients": 20, "seed": 3}
    task = site.task("lin", **settings)
    csrf = {"X-CSRF-Token": browser.csrf("/profile")}
    before = browser.get(f"/api/v1/tasks/{task.number}/partition").json()
    asked = browser.post("/api/v1/partition", json=settings, headers=csrf)
    assert asked.json() == before
    assert sum(before["partition"]["sizes"]) == 6000
    assert [sum(count > 0 for count in row) for row in before["partition"]["counts"]] == [2] * 20
    counts = {"cat": 2000, "dog": 950, "rare": None}
    share = NodeShare(
        node="node-1",
        first_client=0,
        num_clients=20,
        engine=EngineInfo(),
        num_train=3000,
        label_counts=counts,
    )
    plan = RecordedPlan(shares=(share,), chunk_clients=5, version="1").model_dump(mode="json")
    site.store.tasks.set_plan(task.uid, plan)
    found = browser.get(f"/api/v1/tasks/{task.number}/partition").json()["partition"]
    assert found["labels"] == ["cat", "dog", "others"]
    assert [sum(column) for column in zip(*found["counts"], strict=True)] == [2000, 950, 50]
    assert found["exact"] is False, "which labels make up the others is not known"
    rows = list(csv.reader(browser.get(f"/tasks/{task.number}/partition.csv").text.splitlines()))
    assert rows[0] == ["client", "num_examples", "distance", "label_cat", "label_dog", "label_others"]
    assert [int(row[1]) for row in rows[1:]] == found["sizes"]
    page = browser.get(f"/tasks/{task.number}").text
    assert ">cat</text>" in page
    assert site.user("wang").get(f"/api/v1/tasks/{task.number}/partition").status_code == 404


def test_large_partitions_are_not_computed_for_a_page(site: Site) -> None:
    announce(site, num_train=60_000_000, label_counts=(6_000_000,) * 10)
    browser = site.user("lin")
    csrf = {"X-CSRF-Token": browser.csrf("/profile")}
    answer = browser.post("/api/v1/partition", json={"partition": "iid"}, headers=csrf).json()
    assert answer["partition"] is None
    assert "too large to be drawn here" in answer["reason"]
