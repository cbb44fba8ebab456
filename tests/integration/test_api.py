"""The JSON API: every question and command of API.md, by token and by session."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from web_support import Browser, Site, make_site

import fedsim.web
from fedsim import plugins
from fedsim.settings import parse_settings
from fedsim.store.records import TaskState
from fedsim.web.api import ROOT, ApiRoutes
from fedsim.web.routes import Access

DOCUMENT = (Path(fedsim.web.__file__).parent / "API.md").read_text(encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path)
    yield made
    made.store.close()


# Of the routes, all but the public document of the API.
ROUTES = [route for route in ApiRoutes().routes() if route.access is not Access.ANYONE]


def api(site: Site, name: str, *, admin: bool = False) -> Browser:
    """A program with a token of a new user, made on the user's page."""
    browser = site.admin(name) if admin else site.user(name)
    page = browser.post_form("/profile", "/profile/tokens", label="a program").text
    secret = page.split('id="secret">')[1].split("<")[0]
    return site.browser(url=f"http://127.0.0.1{ROOT}", Authorization=f"Bearer {secret}")


def test_the_document_names_every_question_and_no_other() -> None:
    written = set(re.findall(r"^\| `(GET|POST|PATCH|DELETE) (/\S+?)(?:\?\S*)?` \|", DOCUMENT, re.MULTILINE))
    part = {"number": "N", "round_number": "R"}
    answered = {
        (route.method, re.sub(r"<(\w+):int>", lambda found: part.get(found[1], "ID"), route.path).removeprefix(ROOT))
        for route in ROUTES
    }
    assert written == answered


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_nothing_is_answered_without_authentication(site: Site, route: object) -> None:
    path = re.sub(r"<\w+:int>", "1", route.path)  # type: ignore[attr-defined] # a Route
    wrong = {"Authorization": "Bearer fedsim_wrong"}
    for headers in ({}, wrong):
        answer = site.browser().request(route.method, path, headers=headers)  # type: ignore[attr-defined] # as above
        assert answer.status_code == 401
        assert set(answer.json()) == {"error"}


def test_a_task_is_submitted_followed_stopped_and_deleted(site: Site) -> None:
    site.node()
    program = api(site, "lin")
    answer = program.post("tasks", json={"title": "by program", "num_rounds": 4})
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"{ROOT}/tasks/1"
    task = answer.json()["task"]
    assert answer.json()["notes"] == []
    assert site.notifier.notifications == [("submitted", 1)]
    assert (task["state"], task["user_name"], task["cohort_size"], task["queue_position"]) == ("pending", "lin", 10, 1)
    assert task["settings"] == parse_settings({"title": "by program", "num_rounds": 4})[0].model_dump(mode="json")
    assert program.get("tasks/1").json() == {"task": task}
    assert program.get("tasks").json() == {"tasks": [task]}
    assert program.delete("tasks/1").status_code == 409
    record = site.store.tasks.get(1)
    assert record is not None
    site.run_rounds(record, 2)
    running = program.get("tasks/1").json()["task"]
    assert (running["state"], running["round"], running["waiting_for"]) == ("running", 3, ["node-2"])
    rounds = program.get("tasks/1/rounds").json()["rounds"]
    assert [entry["round"] for entry in rounds] == [0, 1, 2]
    assert rounds[2]["seconds"]["train"] == 6.1
    stopped = program.post("tasks/1/stop")
    assert (stopped.status_code, stopped.json()["task"]["stop_requested"]) == (202, True)
    site.store.tasks.move(record.uid, TaskState.STOPPED, now=site.now)
    assert program.post("tasks/1/stop").status_code == 409
    assert program.delete("tasks/1").json()["task"]["delete_requested"] is True
    kinds = [event["kind"] for event in program.get("tasks/1/events").json()["events"]]
    assert kinds == ["delete_requested", "stop_requested", "submitted"]


def test_the_original_platforms_file_is_taken_and_its_oddities_are_noted(site: Site) -> None:
    original = {
        "gpu": "0", "num_of_clients": 100, "cfraction": 0.1, "epoch": 5, "batchsize": 10, "modelname": "mnist_2nn",
        "learning_rate": 0.01, "val_freq": 5, "save_freq": 20, "num_comm": 20, "save_path": "./checkpoints", "iid": 0,
    }  # fmt: skip
    answer = api(site, "lin").post("tasks", json=original, headers={"Accept-Language": "zh"})
    assert answer.status_code == 201
    assert answer.json()["task"]["settings"]["num_rounds"] == 20
    assert answer.json()["notes"] == [
        "已忽略 save_path：文件的存放位置由服务器决定",
        "目前没有持有数据集 mnist 的节点在线，任务将等待节点上线。",
    ]


def test_problems_come_all_at_once_by_field(site: Site) -> None:
    site.node()
    answer = api(site, "lin").post("tasks", json={"num_clients": 0, "fraction_train": "much", "dataset": "imagenet"})
    assert answer.status_code == 422
    assert answer.json() == {
        "error": "The task cannot be submitted: some settings are invalid.",
        "problems": {
            "num_clients": "must be at least 1",
            "fraction_train": "must be a number",
            "dataset": "no node has the data set “imagenet” (available: mnist)",
        },
    }


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 60_000, b'{"title": "\xed\xa0\x80"}'])
def test_a_body_that_is_no_json_object_is_refused(site: Site, body: bytes) -> None:
    answer = api(site, "lin").post("tasks", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


@pytest.mark.parametrize("field", ["title", "model", "dataset", "partition"])
def test_half_a_surrogate_pair_is_a_problem_of_its_field(site: Site, field: str) -> None:
    answer = api(site, "lin").post("tasks", content=json.dumps({field: "\ud800"}).encode())
    assert answer.status_code == 422
    assert list(answer.json()["problems"]) == [field]
    assert api(site, "wang").post("tasks", content=json.dumps({"\ud800": field}).encode()).status_code == 422


def test_a_body_that_is_too_large_is_refused(site: Site) -> None:
    answer = api(site, "lin").post("tasks", content=b" " * 70_000)
    assert (answer.status_code, set(answer.json())) == (413, {"error"})


def test_objects_of_another_user_are_not_found(site: Site) -> None:
    owner, other, admin = api(site, "lin"), api(site, "wang"), api(site, "root", admin=True)
    task = site.task("lin")
    site.run_rounds(task, 10)
    site.finish(task)
    for path in ("tasks/1", "tasks/1/rounds", "tasks/1/events", "tasks/1/checkpoints", "tasks/1/checkpoints/10"):
        assert owner.get(path).status_code == admin.get(path).status_code == 200
        assert other.get(path).status_code == 404
    assert other.post("tasks/1/stop").status_code == other.delete("tasks/1").status_code == 404
    assert other.get("tasks").json() == admin.get("tasks").json() == {"tasks": []}
    assert other.get("tasks?all=1").status_code == 403
    assert len(admin.get("tasks?all=1").json()["tasks"]) == 1


def test_lists_come_in_pages(site: Site) -> None:
    program = api(site, "lin")
    for _ in range(5):
        site.task("lin")
    assert [task["number"] for task in program.get("tasks?limit=2").json()["tasks"]] == [5, 4]
    assert [task["number"] for task in program.get("tasks?limit=2&before=4").json()["tasks"]] == [3, 2]
    assert program.get("tasks?limit=many").json()["problems"] == {"limit": "must be a whole number"}


def test_a_list_takes_as_many_statements_for_many_tasks_as_for_few(site: Site) -> None:
    program = api(site, "lin")
    site.task("lin")
    assert program.get("tasks?limit=500").status_code == 200  # notes the token's use, and does not again soon
    executed: list[str] = []

    def note(*arguments: Any) -> None:
        executed.append(arguments[2])

    counts = []
    for _ in range(2):
        executed.clear()
        sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
        assert program.get("tasks?limit=500").status_code == 200
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", note)
        counts.append((len(executed), sum("FROM tasks" in statement for statement in executed)))
        for _ in range(30):
            site.task("lin")
    assert counts[0] == counts[1]
    assert counts[0][1] == 2, "the list, and the places of those that wait"


def test_checkpoints_are_listed_and_downloaded(site: Site) -> None:
    program = api(site, "lin")
    task = site.task("lin")
    site.run_rounds(task, 10)
    checkpoint = site.finish(task, content=b"0123456789")
    (listed,) = program.get("tasks/1/checkpoints").json()["checkpoints"]
    assert listed["digest"] == checkpoint.digest
    assert listed["url"] == f"{ROOT}/tasks/1/checkpoints/10"
    answer = program.get("tasks/1/checkpoints/10")
    assert (answer.content, answer.headers["ETag"]) == (b"0123456789", f'"{checkpoint.digest}"')
    assert program.get("tasks/1/checkpoints/10", headers={"Range": "bytes=4-"}).content == b"456789"
    assert program.get("tasks/1/checkpoints/10?part=json").json() == {"round": 1}
    site.store.checkpoints.mark_removed(1, 10, why="retention", now=site.now)
    assert program.get("tasks/1/checkpoints").json()["checkpoints"][0]["url"] is None
    assert program.get("tasks/1/checkpoints/10").status_code == 410


def test_options_tell_what_a_task_may_be_made_of(site: Site) -> None:
    site.node(datasets=("mnist", "digits"))
    options = api(site, "lin").get("options").json()
    assert {"2nn", "cnn"} <= set(options["models"])
    assert [dataset["name"] for dataset in options["datasets"]] == ["digits", "mnist"]
    assert options["strategies"] == list(plugins.names(plugins.STRATEGIES))
    (prox,) = (plugin for plugin in options["plugins"]["strategy"] if plugin["name"] == "fedprox")
    assert prox["options"]["properties"]["mu"]["default"] == 0.01
    assert prox["provenance"]["distribution"] == "fedsim-lab"
    assert options["defaults"]["num_rounds"] == 10
    assert options["schema"]["properties"]["num_rounds"]["minimum"] == 1


def test_nodes_come_with_what_they_announced(site: Site) -> None:
    site.node()
    (node,) = api(site, "lin").get("nodes").json()["nodes"]
    assert (node["name"], node["online"], node["hello"]["datasets"][0]["name"]) == ("node-1", True, "mnist")


def test_people_know_themselves_without_their_password(site: Site) -> None:
    user = api(site, "lin").get("me").json()["user"]
    assert (user["name"], user["role"], user["state"]) == ("lin", "user", "active")
    assert "password_hash" not in user


def test_tokens_are_made_used_and_made_worthless(site: Site) -> None:
    program = api(site, "lin")
    made = program.post("tokens", json={"label": "second"})
    assert made.status_code == 201
    secret, token = made.json()["secret"], made.json()["token"]
    assert secret.startswith(token["hint"])
    second = site.browser(url=f"http://127.0.0.1{ROOT}", Authorization=f"Bearer {secret}")
    assert second.get("me").status_code == 200
    assert {entry["label"] for entry in program.get("tokens").json()["tokens"]} == {"a program", "second"}
    assert secret not in program.get("tokens").text
    assert api(site, "wang").delete(f"tokens/{token['id']}").status_code == 404
    assert program.delete(f"tokens/{token['id']}").json() == {"deleted": token["id"]}
    assert second.get("me").status_code == 401
    assert program.post("tokens", json={"label": " "}).status_code == 422


def test_a_disabled_users_token_is_worthless(site: Site) -> None:
    program, admin = api(site, "lin"), api(site, "root", admin=True)
    lin = site.store.users.by_name("lin")
    assert lin is not None
    assert admin.patch(f"users/{lin.id}", json={"state": "disabled"}).json()["user"]["state"] == "disabled"
    assert program.get("me").status_code == 401


def test_administrators_manage_users(site: Site) -> None:
    admin, program = api(site, "root", admin=True), api(site, "lin")
    users = {user["name"]: user for user in admin.get("users").json()["users"]}
    assert set(users) == {"root", "lin"}
    lin, root = users["lin"]["id"], users["root"]["id"]
    assert admin.patch(f"users/{lin}", json={"role": "admin"}).json()["user"]["role"] == "admin"
    assert program.get("users").status_code == 200
    assert admin.patch(f"users/{lin}", json={"role": "king"}).json()["problems"] == {
        "role": "must be one of user, admin"
    }
    assert admin.patch(f"users/{root}", json={"state": "disabled"}).status_code == 422
    assert admin.patch("users/999", json={}).status_code == 404
    password = admin.post(f"users/{lin}/reset-password").json()["password"]
    site.browser().log_in("lin", password)
    assert api(site, "wang").get("users").status_code == 403


def test_a_browsers_session_may_ask_and_with_its_token_may_change(site: Site) -> None:
    browser = site.user("lin")
    assert browser.get(f"{ROOT}/me").status_code == 200
    assert browser.post(f"{ROOT}/tasks", json={}).status_code == 403
    token = {"X-CSRF-Token": browser.csrf("/tasks")}
    assert browser.post(f"{ROOT}/tasks", json={}, headers=token).status_code == 201
    evil = token | {"Origin": "https://evil.example"}
    assert browser.post(f"{ROOT}/tasks", json={}, headers=evil).status_code == 403


def test_a_token_opens_the_api_only_not_the_pages(site: Site) -> None:
    program = api(site, "lin")
    assert program.get("http://127.0.0.1/tasks").status_code == 303


def test_errors_are_reported_in_the_askers_language(site: Site) -> None:
    assert api(site, "lin").get("tasks/9", headers={"Accept-Language": "zh"}).json() == {
        "error": "没有找到内容。它可能已被删除，或属于其他用户。"
    }


@pytest.mark.parametrize("label", ["\ud800", ["list"], {"a": 1}, "line\nbreak", "", None, 7])
def test_a_label_that_is_no_printable_text_is_a_problem_of_its_field(site: Site, label: object) -> None:
    answer = api(site, "ada").post("/tokens", content=json.dumps({"label": label}))
    assert answer.status_code == 422
    assert "label" in answer.json()["problems"]


@pytest.mark.parametrize("path", ["/tasks/-1", "/tasks/-99999999999999999999", "/tasks/99999999999999999999"])
def test_a_number_that_no_task_can_have_is_not_there(site: Site, path: str) -> None:
    assert api(site, "ada").get(path).status_code == 404


def test_an_origin_that_is_no_address_is_a_foreign_one(site: Site) -> None:
    with site.browser() as browser:
        browser.get("/login")
        assert browser.post("/login", data={"name": "x"}, headers={"Origin": "http://["}).status_code == 403
