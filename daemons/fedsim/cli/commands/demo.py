"""`fedsim demo`: starts a lab on this machine and trains a model through the web's pages, from the form to the file."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

from fedsim.cli.api import ApiClient, open_client, reaching
from fedsim.cli.commands.admin import create_administrator
from fedsim.cli.commands.watch import outcome_code, watch_task
from fedsim.cli.follow import metric_name
from fedsim.cli.output import Output
from fedsim.cli.pages import Page, read_page
from fedsim.errors import FedsimError
from fedsim.testing.local_cluster import LocalCluster, NodeSpec

WEB_PORT = 8080
USER = "demo"
# Ten quick rounds with the easiest data; the tutorial goes on from there.
TASK = {
    "title": "Demonstration",
    "partition": "iid",
    "num_rounds": 10,
    "local_epochs": 1,
    "local_learning_rate": 0.05,
    "evaluate_every": 2,
    "save_every": 5,
    "num_nodes": 2,
}
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IDX_FILE = "train-images-idx3-ubyte"


@dataclass(frozen=True)
class DemoData:
    """The data of the nodes: the data folder, the data set as in client.yml, and a description."""

    folder: Path
    dataset: dict[str, Any]
    description: str


def find_data() -> DemoData:
    """Find data: MNIST in a data folder, or else Debian's Fashion-MNIST, or else scikit-learn's digits."""
    wanted = Path(os.environ.get("FEDSIM_DATA", "data")).resolve()
    for folder in (wanted, wanted / "mnist"):
        if _has_idx(folder):
            return DemoData(folder, {"name": "mnist", "path": ".", "share": True}, f"MNIST in {folder}")
    if _has_idx(FASHION_MNIST):
        dataset = {"name": "fashion-mnist", "path": ".", "share": True}
        return DemoData(FASHION_MNIST, dataset, f"Fashion-MNIST in {FASHION_MNIST} (for MNIST set FEDSIM_DATA)")
    dataset = {"name": "digits", "path": "digits", "format": "digits", "share": True}
    return DemoData(wanted, dataset, "scikit-learn's digits (for MNIST set FEDSIM_DATA to the folder of its files)")


def _has_idx(folder: Path) -> bool:
    return any((folder / f"{IDX_FILE}{suffix}").is_file() for suffix in ("", ".gz"))


def _web_port(port: int | None) -> int:
    """The given port; or else the usual port if it is free, otherwise any free port."""
    if port is not None:
        return port
    try:
        with socket.create_server(("127.0.0.1", WEB_PORT)):
            return WEB_PORT
    except OSError:
        return 0


def _make_lab(folder: Path, data: DemoData, port: int | None) -> LocalCluster:
    # A node requires a data folder even for digits, which are not read from it.
    place = data.folder if data.folder.is_dir() else folder / "data"
    nodes = [NodeSpec(name, place, [data.dataset], {"clients": 50}) for name in ("node-a", "node-b")]
    return LocalCluster(folder, nodes, web_port=_web_port(port))


def _post(http: httpx.Client, url: str, form: str, content: dict[str, Any]) -> str:
    """Submit the form on the page `form`; returns the location of the redirect."""
    page = read_page(url, http, form)
    answer = http.post(f"{url}{form}", data={"csrf": page.csrf, **{key: str(value) for key, value in content.items()}})
    if not answer.is_redirect:
        raise FedsimError(f"the web refused the form {form}: {Page.read(answer).alert or answer.status_code}")
    return str(answer.headers["Location"])


def _through_the_web(url: str, password: str, dataset: str) -> tuple[int, str]:
    """Log in and submit a task as a user would; returns its number and a token to watch it."""
    with reaching(url), open_client(url) as http:
        _post(http, url, "/login", {"name": USER, "password": password})
        task = _post(http, url, "/tasks/new", {**TASK, "dataset": dataset})
        csrf = read_page(url, http, "/profile").csrf
        made = http.post(f"{url}/api/v1/tokens", json={"label": "demonstration"}, headers={"X-CSRF-Token": csrf})
        return int(task.rsplit("/", 1)[-1]), str(made.raise_for_status().json()["secret"])


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Each run creates its own folder in it.",
)
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the web [default: 8080 if it is free].")
def demo(folder: Path, port: int | None) -> int:
    """Start a lab on this machine and train a model in it, through the web's pages."""
    out = Output(as_json=False)
    data = find_data()
    run = folder.resolve() / time.strftime("run-%Y%m%d-%H%M%S")
    out.say(f"Data: {data.description}")
    # SIGTERM, and SIGHUP from a closed terminal, end the processes as Ctrl-C does.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit(1))
    lab = _make_lab(run, data, port)
    out.say(f"Starting {len(lab.processes)} processes in {run} …")
    with lab:
        for process in lab.processes.values():
            out.say(f"  {process.name:16} pid {process.pid}")
        password = secrets.token_urlsafe(9)
        out.say(f"Through {lab.url}: logging in as the administrator {USER!r}, submitting the task …")
        create_administrator(lab.folder / "etc" / "web.yml", USER, password)
        number, token = _through_the_web(lab.url, password, data.dataset["name"])
        with ApiClient(lab.url, token) as api:
            last = watch_task(api, out, number)
            _show_result(out, lab, api, number)
        if sys.stdout.isatty():
            out.say("")
            out.say(f"The web still answers: {lab.url}  (name {USER}, password {password})  – Ctrl-C ends it.")
            _wait_for_interrupt()
    out.say("Every process has ended.")
    return outcome_code(last)


def _show_result(out: Output, lab: LocalCluster, api: ApiClient, number: int) -> None:
    task = api.task(number)
    checkpoints = api.checkpoints(number)
    if task["state"] != "completed" or not checkpoints:
        raise FedsimError(f"the task ended as {task['state']}: {task['reason']}; the logs are in {lab.folder / 'log'}")
    newest = checkpoints[-1]
    out.say("")
    headline = task["headline"]
    out.say(f"{f'Final {metric_name(headline)}':17}{task['metrics'][headline]:.4f}")
    out.say(f"Checkpoint       {lab.server_spool / 'checkpoints' / newest['path']}")
    out.say(f"Its digest       {newest['digest']}")
    out.say(f"Parameters       {task['digest']}")
    out.say(f"The task's page  {lab.url}/tasks/{number}")


def _wait_for_interrupt() -> None:
    """Wait for Ctrl-C. The processes end when the context of the cluster exits."""
    with suppress(KeyboardInterrupt):
        signal.pause()
