"""What tests of the web share: the real application on a real SQLite file, and a client that behaves like a browser."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import blake2b
from html import unescape
from pathlib import Path
from typing import Any, Self

import httpx

from fedsim.config import WebConfig
from fedsim.messages import DataSetInfo, EngineInfo, GuardInfo, Hello, PluginInfo
from fedsim.settings import TaskSettings
from fedsim.store import Store, open_store
from fedsim.store.records import Checkpoint, Node, Progress, RoundRecord, Task, TaskState, UserRole, UserState
from fedsim.web import accounts, passwords
from fedsim.web.app import make_app

PASSWORD = "a long enough password"
START = 1_800_000_000.0


@dataclass
class RecordingNotifier:
    """Notes what the server would have been notifications."""

    notifications: list[tuple[str, int]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def submitted(self, task: Task) -> None:
        self.notifications.append(("submitted", task.number))

    def stop(self, task: Task, reason: str = "") -> None:
        self.notifications.append(("stop", task.number))
        self.reasons.append(reason)

    def close(self) -> None:
        pass


class Browser(httpx.Client):
    """Keeps cookies and sends forms with the token that the page holds, as a browser does."""

    def post_form(self, page: str, action: str | None = None, /, **fields: str) -> httpx.Response:
        """Open `page`, and send its form with `fields` to `action` (the page's own address if left out)."""
        return self.post(action or page, data={"csrf": self.csrf(page), **fields})

    def csrf(self, page: str) -> str:
        found = re.search(r'name="csrf" value="([^"]+)"', self.get(page).text)
        assert found, f"{page} has no form"
        return unescape(found[1])

    def log_in(self, name: str, password: str = PASSWORD) -> Self:
        answer = self.post_form("/login", name=name, password=password)
        assert answer.status_code == 303, answer.text
        return self


@dataclass
class Site:
    """The application with its parts, and a clock that the test moves."""

    folder: Path
    config: WebConfig
    store: Store
    notifier: RecordingNotifier
    now: float = START

    def __post_init__(self) -> None:
        self.app = make_app(self.config, self.store, self.notifier, clock=lambda: self.now)

    def browser(self, *, url: str = "http://127.0.0.1", address: str = "127.0.0.1", **headers: str) -> Browser:
        transport = httpx.WSGITransport(app=self.app, remote_addr=address, raise_app_exceptions=False)
        return Browser(transport=transport, base_url=url, headers=headers)

    def user(self, name: str, role: UserRole = UserRole.USER) -> Browser:
        """A browser in which a new user is logged in (without the form, and the time that hashing takes)."""
        person = self.store.users.create(
            name, hashed_password(), role=role, state=UserState.ACTIVE, language="", now=self.now
        )
        session_id, _ = accounts.start_session(self.store, self.config, person, old=None, now=self.now)
        browser = self.browser()
        browser.cookies.set("fedsim_session", session_id, domain="127.0.0.1", path="/")
        return browser

    def admin(self, name: str = "root") -> Browser:
        return self.user(name, UserRole.ADMIN)

    def node(self, name: str = "node-1", **said: Any) -> None:
        """A node announces itself with what `hello` takes."""
        self.store.nodes.record(Node(name, self.now, hello(name, **said)))

    def task(self, user: str, **settings: Any) -> Task:
        owner = self.store.users.by_name(user)
        assert owner is not None
        uid = blake2b(repr((user, settings, self.now)).encode(), digest_size=16).hexdigest()
        self.now += 1
        return self.store.tasks.create(owner.id, TaskSettings.model_validate(settings), uid, self.now)

    def run_rounds(
        self,
        task: Task,
        rounds: int,
        *,
        first: int = 0,
        missing: tuple[int, ...] = (),
        screening: Any = (),
        **found: Any,
    ) -> None:
        """Move a task on as the server does: claimed, running, `rounds` of it committed."""
        if self.store.tasks.get(task.number).state is TaskState.PENDING:  # type: ignore[union-attr] # it exists
            assert self.store.tasks.claim_next(self.now) is not None
            assert self.store.tasks.move(task.uid, TaskState.RUNNING, now=self.now)
            self.store.tasks.set_nodes(task.uid, ("node-1", "node-2"))
        for number in range(first, rounds + 1):
            self.now += 1
            accuracy = 0.9 - 0.8 / (number + 1)
            record = replace(round_record(number, accuracy, self.now, missing), screening=screening if number else ())
            self.store.rounds.record(task.uid, replace(record, **found))
        left = task.settings.num_rounds - rounds
        self.store.tasks.set_progress(
            task.uid, Progress(rounds + 1, "training", ("node-2",), self.now + 600, float(left * 7))
        ) if left else None

    def finish(self, task: Task, *, content: bytes = b"the model's bytes") -> Checkpoint:
        folder = self.folder / "checkpoints" / f"task-{task.number}"
        folder.mkdir(parents=True)
        number = task.settings.num_rounds
        path = folder / f"round-{number:04d}.safetensors"
        path.write_bytes(content)
        path.with_suffix(".json").write_text('{"round": 1}', encoding="utf-8")
        digest = blake2b(content, digest_size=32).hexdigest()
        checkpoint = Checkpoint(number, f"task-{task.number}/{path.name}", digest, len(content), self.now)
        self.store.checkpoints.record(task.uid, checkpoint)
        assert self.store.tasks.move(task.uid, TaskState.COMPLETED, now=self.now, digest=digest)
        return checkpoint


@cache
def hashed_password() -> str:
    """Made once."""
    return passwords.hash_password(PASSWORD)


def make_site(folder: Path, **config: Any) -> Site:
    values = {"registration": "open", "database": f"sqlite:///{folder}/fedsim.db", **config}
    checked = WebConfig.model_validate({"checkpoints": folder / "checkpoints", **values})
    store = open_store(checked.database)
    store.migrate()
    return Site(folder, checked, store, RecordingNotifier())


def hello(
    name: str,
    *,
    num_train: int = 60_000,
    datasets: tuple[str, ...] = ("mnist",),
    label_counts: tuple[int, ...] | None = None,
    guard: GuardInfo | None = None,
) -> dict[str, Any]:
    """What a node announces, as the server records it."""
    infos = tuple(
        DataSetInfo(
            name=dataset,
            digest="ab" * 32,
            num_train=num_train,
            num_test=10_000,
            feature_shape=(28, 28, 1),
            num_classes=10,
            label_counts=label_counts,
            guard=guard,
        )
        for dataset in datasets
    )
    return Hello(
        node=name,
        version="0.1.0",
        sent_at=START,
        clients=100,
        engine=EngineInfo(processor="a processor", torch="2.13.0"),
        datasets=infos,
        plugins={"models": (PluginInfo(name="2nn", version="0.1.0"), PluginInfo(name="cnn", version="0.1.0"))},
        certificate_expires_at=START + 20.5 * 86400,
    ).model_dump(mode="json")


def round_record(number: int, accuracy: float, at: float, missing: tuple[int, ...] = ()) -> RoundRecord:
    return RoundRecord(
        round=number,
        digest=f"{number:064x}",
        num_examples=6000,
        seconds={} if number == 0 else {"train": 6.1, "aggregate": 0.02, "all": 6.2, "evaluate": 0.4},
        bytes_sent=796_840 * number,
        bytes_received=796_840 * number,
        cohort_size=10,
        missing=missing,
        finished_at=at,
        train_metrics={} if number == 0 else {"train_loss": 2.3 / (number + 1)},
        metrics={"accuracy": accuracy, "loss": 2.4 / (number + 1)},
        class_metrics={
            "recall": tuple(accuracy for _ in range(10)),
            "confusion": (*((0.25, 0.75) for _ in range(9)), None),
        },
    )
