"""A lab that Ansible has deployed to the laboratory's hosts, used as its owner and its users do."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import CommandError, call
from image import CACHE, SUDOER
from laboratory import HOSTS, Laboratory

SOURCE = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
PLAY_SECONDS = 900  # on a busy disk bare hosts take nearly ten minutes
TASK_SECONDS = 120
# What every machine writes while it runs, and what apt and dpkg remember of packages that are gone.
REMEMBERED = re.compile(
    r"(var/log|var/cache|var/lib/(dpkg|apt|systemd|ucf|pam)|var/backups|root|home|tmp|var/tmp|run)(/|$)"
)
OWN_PASSWORD = "a sentence of the administrator"
FIRST_LOG_IN = """
import httpx, re, sys

name, given, chosen = sys.argv[1:]
with httpx.Client(base_url="https://server") as browser:
    def send(page, action, **fields):
        token = re.search(r'name="csrf" value="([^"]+)"', browser.get(page).text)[1]
        answer = browser.post(action, data={"csrf": token, **fields})
        assert answer.status_code < 400, answer.text

    send("/login", "/login", name=name, password=given)
    assert browser.get("/tasks").headers["Location"] == "/profile"
    send("/profile", "/profile/password", old=given, new=chosen)
    assert browser.get("/tasks").status_code == 200
"""
CALLBACKS = Path(__file__).parent / "callbacks"
COMPARE = ("/opt/fedsim/current/bin/python", "-m", "fedsim_fleet.on_host.units", "compare")
UNITS = {
    "server": [f"fedsim-{name}.service" for name in ("receiver", "server", "web")]
    + ["nginx.service", "mariadb.service"],
    "node": ["fedsim-receiver.service", "fedsim-client.service"],
}
# Names are made known to this process alone; its lab's owner would use DNS or /etc/hosts.
WITH_HOSTS = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'


def gather(source: Path, folder: Path, *options: str, find_links: Path | None = None) -> Path:
    """Everything that hosts install, in `folder`; quick where little has changed. Returns the folder.

    Args:
        options: further ones of the command.
        find_links: a folder with wheels that pip also considers.
    """
    links = f"{os.environ.get('PIP_FIND_LINKS', '')} {find_links or ''}".strip()
    call(
        [str(PROGRAMS / "fedsim-gather"), "--folder", str(folder), "--source", str(source), *options],
        seconds=PLAY_SECONDS,
        environment={**os.environ, "PYTHONPATH": modules(source), **({"PIP_FIND_LINKS": links} if links else {})},
    )
    return folder


def modules(source: Path) -> str:
    """PYTHONPATH with which the commands of this installation run the code of `source`."""
    return f"{source / 'daemons'}:{source / 'deploy'}"


@dataclass
class Deployment:
    """The owner's control machine: an inventory, what was gathered, playbooks."""

    laboratory: Laboratory
    packages: Path
    bare: dict[str, set[str]]
    source: Path = SOURCE

    @classmethod
    def of(cls, laboratory: Laboratory, source: Path = SOURCE, packages: Path | None = None) -> Deployment:
        """A new control machine, with the inventory as it comes, but that no one logs in to node-a as root.

        Nothing is deployed yet. What hosts install is gathered, unless it is given.
        """
        if "node-b" in laboratory.hosts:
            laboratory["node-b"].run("sh", "-c", "echo umask 077 > /root/.bashrc")  # as on hardened images
        bare = {name: host.written_files() for name, host in laboratory.hosts.items()}
        deployment = cls(laboratory, packages or gather(source, CACHE / "packages"), bare, source)
        deployment.inventory.parent.mkdir()
        examples = [
            source / "ansible" / "inventory" / name for name in ("example.yml", "lab.yml")
        ]  # 0.1 has the latter
        example = next(path for path in examples if path.exists())
        inventory = yaml.safe_load(example.read_text(encoding="utf-8"))
        nodes = inventory["all"]["children"]["fedsim_nodes"]["hosts"]
        nodes["node-a"] |= {"ansible_user": SUDOER, "ansible_become": True}
        for name in set(nodes) - set(laboratory.hosts):
            del nodes[name]
        deployment.inventory.write_text(yaml.safe_dump(inventory), encoding="utf-8")
        names = "".join(f"{address} {name}\n" for name, address in HOSTS.items())
        deployment.names.write_text(f"127.0.0.1 localhost\n{names}", encoding="utf-8")
        return deployment

    @property
    def inventory(self) -> Path:
        return self.laboratory.control.home / "inventory" / "lab.yml"

    @property
    def names(self) -> Path:
        return self.laboratory.control.home / "hosts"

    @property
    def secrets(self) -> Path:
        return self.inventory.with_name("secrets")

    def play(self, name: str, limit: str = "all", **variables: Any) -> dict[str, dict[str, int]]:
        """Run a playbook, on all hosts or on some; returns what it counted of each host: ok, changed, failures …

        Raises:
            CommandError: it failed; with what it printed.
        """
        given = {"fedsim_packages": str(self.packages), **variables}
        options = ("--limit", limit, "--extra-vars", json.dumps(given))
        said = self.ansible("ansible-playbook", *options, str(self.source / "ansible" / name))
        recap = said.rpartition("PLAY RECAP")[2].splitlines()[1:]
        counted = [line.split() for line in recap if ":" in line]
        return {
            words[0]: {key: int(n) for key, _, n in (word.partition("=") for word in words[2:])} for words in counted
        }

    def interrupted(self, name: str, task: int, **variables: Any) -> None:
        """Run a playbook that is killed before this task of it begins, the first being 1."""
        given = {"fedsim_packages": str(self.packages), **variables}
        with pytest.raises(CommandError, match="ended with -9"):
            self.ansible(
                "ansible-playbook",
                *("--extra-vars", json.dumps(given), str(self.source / "ansible" / name)),
                ANSIBLE_CALLBACK_PLUGINS=str(CALLBACKS),
                INTERRUPT_AT=str(task),
            )

    def changed_everywhere(self, number: int) -> dict[str, Any]:
        """Variables that change what every unit runs with: its definition and its YAML file."""
        changed = self.laboratory.folder / f"systemd-{number}"
        shutil.copytree(self.source / "systemd", changed, dirs_exist_ok=True)
        with (changed / "fedsim-.service.d" / "10-running.conf").open("a", encoding="utf-8") as file:
            file.write(f"# {number}\n")
        return {
            "fedsim_units": str(changed),
            "fedsim_client_settings": {"keep_models": number},
            "fedsim_server_settings": {"poll_seconds": number},
            "fedsim_web_settings": {"threads": number},
            "fedsim_receiver_settings": {"limits": {"max_parameter_bytes": 8_589_934_592 + number}},
        }

    def commit(self) -> str:
        """The commit that is tested, in hexadecimal; 0 without git."""
        done = call(["git", "-C", str(self.source), "rev-parse", "HEAD"], check=False)
        return done.stdout.strip() or "0"

    def tasks_of(self, name: str) -> int:
        """How many tasks a playbook has at least, on each host and without those that depend on a condition."""
        said = self.ansible("ansible-playbook", "--list-tasks", str(self.source / "ansible" / name))
        return sum("TAGS:" in line and not line.startswith("  play #") for line in said.splitlines())

    def outdated(self, names: Collection[str] = tuple(HOSTS)) -> dict[str, Any]:
        """The units of these hosts that run with other files than those on disk."""
        found = {
            name: json.loads(
                host.run(*COMPARE, "fedsim-receiver.socket", *UNITS["server" if name == "server" else "node"])
            )
            for name, host in self.laboratory.hosts.items()
            if name in names
        }
        return {name: units for name, units in found.items() if units}

    def ansible(self, program: str, *arguments: str, **environment: str) -> str:
        """Run a program of Ansible with the lab's inventory; returns what it printed."""
        return self.laboratory.control.run(
            str(PROGRAMS / program),
            "--inventory",
            str(self.inventory),
            *arguments,
            seconds=PLAY_SECONDS,
            ANSIBLE_CONFIG=str(self.source / "ansible" / "ansible.cfg"),
            PYTHONPATH=modules(self.source),
            **environment,
        ).stdout

    def changes(self, name: str, limit: str = "all", **variables: Any) -> int:
        """Run a playbook; returns how much it changed."""
        return sum(counted["changed"] for counted in self.play(name, limit, **variables).values())

    def https(self, *command: str, text: str = "", check: bool = True) -> str:
        """Run a command of this installation that speaks with the web through nginx; the web's authority vouches."""
        program, *arguments = command
        # A lab of 0.1 has one authority for everything.
        authority = next(folder for name in ("web-ca", "ca") if (folder := self.secrets / name).exists())
        return self.laboratory.control.run(
            "unshare",
            "--mount",
            "/bin/sh",
            "-c",
            WITH_HOSTS,
            "sh",
            str(self.names),
            str(PROGRAMS / program),
            *arguments,
            text=text,
            check=check,
            seconds=TASK_SECONDS,
            PYTHONPATH=modules(self.source),
            FEDSIM_URL="https://server",
            SSL_CERT_FILE=str(authority / "ca.crt"),
        ).stdout

    def fedsim(self, *arguments: str, text: str = "") -> Any:
        """The command `fedsim` as a user runs it; returns its JSON."""
        return json.loads(self.https("fedsim", *arguments, "--json", text=text))

    def log_in(self, name: str, password: str) -> None:
        """Store the token in the control machine's home."""
        self.https("fedsim", "login", "--name", name, "--password-stdin", text=password)

    def first_log_in(self, name: str = "ada") -> None:
        """Log the first administrator in, who changes the generated password at a browser before anything else."""
        path = self.secrets / f"{name}.password"
        self.https("python", "-c", FIRST_LOG_IN, name, path.read_text(encoding="utf-8").strip(), OWN_PASSWORD)
        self.log_in(name, OWN_PASSWORD)

    def submit(self, **settings: Any) -> int:
        """Submit a small task; returns its number."""
        small = {
            "title": "lab",
            "model": "logistic",
            "dataset": "digits",
            "num_clients": 20,
            "fraction_train": 0.5,
            "local_epochs": 1,
            "num_rounds": 3,
            "save_every": 1,
        }
        return int(self.fedsim("submit", "-", text=yaml.safe_dump({**small, **settings}))["task"]["number"])

    def task(self, number: int) -> dict[str, Any]:
        """The state of the task."""
        task: dict[str, Any] = self.fedsim("show", str(number))["task"]
        return task

    def download(self, number: int) -> int:
        """Download the task's last checkpoint, which is verified by its digest; returns its round."""
        home = str(self.laboratory.control.home)
        return int(self.fedsim("download", str(number), "--force", "--output", home)["checkpoint"]["round"])

    def checkpoint(self, number: int, round_number: int) -> dict[str, Any]:
        """What the server has noted beside the checkpoint of a task's round."""
        path = f"/var/lib/fedsim/server/checkpoints/task-{number}/round-{round_number:04}.json"
        noted: dict[str, Any] = json.loads(self.laboratory["server"].run("cat", path))
        return noted

    def digest(self, number: int, round_number: int) -> str:
        """The digest of the checkpoint of a task's round: equal for equal parameters."""
        return str(self.checkpoint(number, round_number)["digest"])

    def await_task(self, number: int, what: str, ready: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask until the task is so far; the web may be away meanwhile."""
        until, last = time.monotonic() + TASK_SECONDS, "never answered"
        while time.monotonic() < until:
            try:
                task = self.task(number)
            except CommandError as away:
                last = str(away)
                continue
            if ready(task):
                return task
            last = str({key: task[key] for key in ("state", "reason", "round", "phase", "waiting_for")})
        raise AssertionError(f"task {number} was {what} not in {TASK_SECONDS} s: {last}")

    def reached(self, number: int, round_number: int) -> None:
        """Wait until this round of a running task is done."""
        self.await_task(number, f"at round {round_number}", lambda task: task["round"] >= round_number)

    def completed(self, number: int) -> dict[str, Any]:
        """Wait for the task's end, which must be a good one."""
        task = self.await_task(number, "finished", lambda task: task["state"] not in ("pending", "starting", "running"))
        assert task["state"] == "completed", task
        return task

    def sign(self, request: str, name: str, days: int = 365) -> str:
        """A node's certificate, of the lab's authority, for a signing request that came by other ways."""
        authority = self.secrets / "ca"
        return self.laboratory.control.run(
            str(PROGRAMS / "fedsim-ca"),
            *("sign", "-", "--name", name, "--role", "client", "--days", str(days), "--folder", str(authority)),
            *("--passphrase-file", str(authority.with_suffix(".passphrase"))),
            text=request,
        ).stdout

    def owner_key(self, name: str = "owner") -> tuple[Path, str]:
        """The owner's identity of age, made at the first call, and its public key."""
        path = self.laboratory.control.home / f"{name}.key"
        if not path.exists():
            call(["age-keygen", "--output", str(path)])
        return path, call(["age-keygen", "-y", str(path)]).stdout.strip()

    def reaches(self, address: str, port: int) -> bool:
        """Whether the control machine, which is no peer, can connect to a TCP port of a host."""
        command = ["/bin/bash", "-c", f"timeout 2 bash -c '< /dev/tcp/{address}/{port}'"]
        return self.laboratory.control.run(*command, check=False).returncode == 0

    def version(self, host: str) -> str:
        """The version that is the current one on a host."""
        return self.laboratory[host].run("readlink", "/opt/fedsim/current").strip()

    def uninstalled(self) -> dict[str, list[str]]:
        """Run uninstall.yml; returns what it has left on each host.

        Then the environments are there again where they were: installing them takes minutes, and is tested elsewhere.
        """
        environment = f"/opt/fedsim/{self.version('server')}"
        keep = f"test ! -d {environment} || {{ cp --archive --link {environment} /root/kept && echo kept; }}"
        having = [host for host in self.laboratory.hosts.values() if "kept" in host.run("sh", "-c", keep)]
        self.play("uninstall.yml", confirm="yes")
        left = {name: self.left_on(name) for name in self.laboratory.hosts}
        for host in having:
            host.run("mkdir", "/opt/fedsim")
            host.run("mv", "/root/kept", environment)
        return left

    def left_on(self, name: str) -> list[str]:
        """What is on a host that was not there when it was bare."""
        new = self.laboratory[name].written_files() - self.bare[name]
        return sorted(path for path in new if not REMEMBERED.match(path))
