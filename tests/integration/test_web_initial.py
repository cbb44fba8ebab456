"""What a submitted task starts from: found, checked against its model, recorded, and shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_web_submit import fields_of
from web_support import Browser, Site, make_site

from fedsim.array_layout import Layout
from fedsim.learning.networks import initial_vector, parameter_shapes
from fedsim.messages import ModelSpec
from fedsim.spool.npy import hash_file
from fedsim.store.records import Checkpoint, TaskState
from fedsim.worker.checkpoint import write_safetensors

SPEC = ModelSpec(name="2nn", feature_shape=(28, 28, 1), num_classes=10)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = make_site(tmp_path, models=tmp_path / "models")
    made.node()
    (tmp_path / "models").mkdir()
    yield made
    made.store.close()


def arrays() -> dict[str, Any]:
    return dict(Layout(parameter_shapes(SPEC)).views(initial_vector(SPEC, 1)))


def checkpoint(site: Site, user: str, round_number: int = 20) -> tuple[int, str]:
    """A completed task of this user with a checkpoint, and its digest."""
    task = site.task(user, num_rounds=20)
    site.run_rounds(task, 1)
    name = f"task-{task.number}/round-{round_number:04d}.safetensors"
    path = site.folder / "checkpoints" / name
    path.parent.mkdir(parents=True)
    digest, size = write_safetensors(path, arrays(), {"fedsim": SPEC.model_dump_json()})
    site.store.checkpoints.record(task.uid, Checkpoint(round_number, name, digest, size, site.now))
    assert site.store.tasks.move(task.uid, TaskState.COMPLETED, now=site.now, digest=digest)
    return task.number, digest


def submit(browser: Browser, initial: str, **settings: Any) -> Any:
    page = browser.get("/tasks/new").text
    typed = fields_of(page) | {"initial": initial} | settings
    return browser.post("/tasks/new", data=typed)


def problem(answer: Any) -> str:
    assert answer.status_code == 422, answer.text
    return str(answer.text)


def test_a_task_starts_from_a_checkpoint_and_says_so(site: Site) -> None:
    browser = site.user("lin")
    number, digest = checkpoint(site, "lin")
    for typed in (f"task {number}", f"task {number}@20"):
        answer = submit(browser, typed)
        assert answer.status_code == 303, answer.text
        task = site.store.tasks.get(int(answer.headers["Location"].rpartition("/")[2]))
        assert task is not None
        assert task.settings.initial == f"task {number}@20", "the round is fixed at submission"
        assert task.initial is not None
        assert task.initial.model_dump(exclude_none=True) == {
            "source": "task",
            "task": number,
            "round": 20,
            "digest": digest,
        }
        page = browser.get(f"/tasks/{task.number}").text
        assert f"Starts from round 20 of task {number}" in page
        assert digest in page


def test_a_file_of_the_administrator_is_found_by_its_name(site: Site) -> None:
    browser = site.user("lin")
    path = site.folder / "models" / "base.safetensors"
    save_file(arrays(), path)
    assert "file base.safetensors" in browser.get("/tasks/new").text
    for number, name in enumerate(("base", "base.safetensors"), 1):
        answer = submit(browser, f"file {name}")
        assert answer.status_code == 303, answer.text
        task = site.store.tasks.get(number)
        assert task is not None
        assert task.initial is not None
        assert (task.initial.file, task.initial.digest) == ("base.safetensors", hash_file(path))
    assert "Starts from the file base.safetensors" in browser.get("/tasks/1").text


def test_what_is_not_there_or_not_the_users_is_refused_at_the_field(site: Site) -> None:
    browser, other, admin = site.user("lin"), site.user("ada"), site.admin()
    number, _ = checkpoint(site, "lin")
    for typed in (f"task {number}", "task 99"):
        expected = f"there is no task {typed.removeprefix('task ')}, or it belongs to another user"
        assert expected in problem(submit(other, typed))
    assert submit(admin, f"task {number}").status_code == 303
    assert f"task {number} has no checkpoint of round 7 (available: 20)" in problem(submit(browser, f"task {number}@7"))
    assert "the server has no file “nothing”" in problem(submit(browser, "file nothing"))
    assert "must be empty" in problem(submit(browser, "file ../fedsim.db"))
    site.store.checkpoints.mark_removed(number, 20, why="older than 1 days", now=site.now)
    assert "this checkpoint was removed: older than 1 days" in problem(submit(browser, f"task {number}@20"))
    assert f"task {number} has no checkpoint" in problem(submit(browser, f"task {number}"))
    site.store.tasks.request_delete(number)
    assert f"task {number} is being deleted" in problem(submit(browser, f"task {number}"))
    assert len(site.store.tasks.newest()) == 2


def test_arrays_that_do_not_fit_the_model_are_refused_at_the_field(site: Site) -> None:
    browser = site.user("lin")
    number, _ = checkpoint(site, "lin")
    assert "of the model" in problem(submit(browser, f"task {number}", model="cnn"))
    folder = site.folder / "models"
    named = dict(zip(arrays(), arrays().values(), strict=True))
    first = next(iter(named))
    save_file(named | {first: np.zeros((2, 2), np.float32)}, folder / "shape.safetensors")
    assert f"has {first} with the shape [2, 2]" in problem(submit(browser, "file shape"))
    save_file({name: array.astype(np.float16) for name, array in named.items()}, folder / "half.safetensors")
    assert "must have float32 arrays" in problem(submit(browser, "file half"))
    (folder / "text.safetensors").write_text("nothing")
    assert "cannot be read" in problem(submit(browser, "file text"))


def test_a_model_that_no_node_has_data_for_yet_is_checked_later(tmp_path: Path) -> None:
    made = make_site(tmp_path, models=tmp_path)
    browser = made.user("lin")
    save_file(arrays(), tmp_path / "base.safetensors")
    assert submit(browser, "file base").status_code == 303
    task = made.store.tasks.get(1)
    assert task is not None
    assert task.initial is not None
    made.store.close()
