"""The README promises nothing that is not so: its tables, files, links and examples are taken from it and tried."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import BaseModel

from fedsim.cli.main import EPILOG, cli
from fedsim.config import ClientConfig, ReceiverConfig, ServerConfig, TlsConfig, WebConfig, load_config
from fedsim.learning.strategies import STRATEGIES
from fedsim.settings import SEED_NAMES, TaskSettings, parse_settings
from fedsim.spool.files import Role
from fedsim.wire import Identity
from fedsim.wire.tls import Credentials
from fedsim_fleet.ca import ca

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
SAMPLES = ROOT / "etc" / "fedsim"
CONFIGS: dict[str, type[BaseModel]] = {
    "server": ServerConfig,
    "receiver": ReceiverConfig,
    "client": ClientConfig,
    "web": WebConfig,
}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAX_PICTURE_BYTES = 200 * 1024


def blocks(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return [content for name, content in BLOCK.findall(README) if name == language]


def named(language: str, name: str) -> list[str]:
    """Those whose first line is a comment with this name."""
    return [content for content in blocks(language) if content.startswith(f"# {name}\n")]


def section(name: str) -> list[list[str]]:
    """The cells of the table between two comments, without its head."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README, re.DOTALL)
    assert found, f"the README has no part {name!r}"
    rows = [line.strip("|").split(" | ") for line in found[1].strip().splitlines()]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def allowed(schema: dict[str, Any]) -> str:
    """What a setting may be, by its JSON schema."""
    if "enum" in schema:
        return ", ".join(schema["enum"])
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    start = str(low) if low is not None else f"above {above}"
    return (
        "text" if high is below is None else f"{start} to {high}" if high is not None else f"{start} to below {below}"
    )


def test_the_table_of_settings_is_the_model() -> None:
    original = {ours: theirs for theirs, ours in SEED_NAMES.items()}
    schema = TaskSettings.model_json_schema()["properties"]
    expected = [
        [
            f"`{name}`",
            str(field.default) or "–",
            f"`{original[name]}`" if name in original else "",
            allowed(schema[name]),
            field.description,
        ]
        for name, field in TaskSettings.model_fields.items()
    ]
    assert section("settings") == expected


def test_every_strategy_is_explained() -> None:
    assert re.findall(r"^\| `(\w+)` \|.* et al\. \d{4} \|$", README, re.MULTILINE) == list(STRATEGIES)


def test_the_table_of_commands_is_the_command() -> None:
    told = [command for row in section("commands") for command in re.findall(r"`fedsim (\w+)", row[0])]
    assert sorted(told) == sorted(cli.commands)


def test_options_of_commands_that_are_told_exist() -> None:
    told = [(row[0], re.findall(r"`(--\w+)", row[1])) for row in section("commands")]
    checked = [(re.findall(r"`fedsim (\w+)", commands), options) for commands, options in told if options]
    assert [commands for commands, _ in checked] == [["demo"], ["submit"], ["download"]]
    for (command,), options in checked:
        assert set(options) <= {option for parameter in cli.commands[command].params for option in parameter.opts}


def test_every_command_but_the_demonstration_takes_json() -> None:
    def lacking(name: str, command: click.Command) -> list[str]:
        if isinstance(command, click.Group):
            return [missing for part, below in command.commands.items() for missing in lacking(f"{name} {part}", below)]
        return [] if any("--json" in parameter.opts for parameter in command.params) else [name]

    assert lacking("fedsim", cli) == ["fedsim demo"]


def test_exit_codes_are_those_of_the_command() -> None:
    assert [row[0] for row in section("exit codes")] == re.findall(r"^ +(\d+)  ", EPILOG, re.MULTILINE)


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_in_the_readme_is_valid_beside_the_sample(name: str, tmp_path: Path) -> None:
    sample = yaml.safe_load((SAMPLES / f"{name}.yml").read_text(encoding="utf-8"))
    shown = named("yaml", f"{name}.yml")
    assert shown or name in {"receiver", "web"}
    for content in shown:
        path = tmp_path / f"{name}.yml"
        path.write_text(yaml.safe_dump({**sample, **yaml.safe_load(content)}), encoding="utf-8")
        load_config(path, CONFIGS[name])


def test_the_lab_by_hand_has_valid_files_that_know_each_other(tmp_path: Path) -> None:
    (script,) = named("sh", "lab.sh")
    (tmp_path / "mnist").mkdir()
    make, start = script.split("\n\n")
    subprocess.run(["/bin/sh", "-ec", make], cwd=ROOT, env={**os.environ, "HOME": str(tmp_path)}, check=True)
    started = re.findall(r'^fedsim-(\w+) +--config "\$LAB/([\w-]+\.yml)"', start, re.MULTILINE)
    lab = tmp_path / "fedsim-lab"
    loaded = {file: load_config(lab / file, CONFIGS[daemon]) for daemon, file in started}
    server, node = loaded["server.yml"], loaded["client.yml"]
    receiver, node_receiver, web = loaded["receiver.yml"], loaded["node-receiver.yml"], loaded["web.yml"]
    assert isinstance(server, ServerConfig)
    assert isinstance(node, ClientConfig)
    assert isinstance(receiver, ReceiverConfig)
    assert isinstance(node_receiver, ReceiverConfig)
    assert isinstance(web, WebConfig)
    assert (receiver.spool, node_receiver.spool) == (server.spool, node.spool)
    assert (server.database, web.checkpoints) == (web.database, server.spool / "checkpoints")
    assert receiver.listen == node.server == web.server
    assert [(known.name, known.port) for known in server.nodes] == [(node.name, node_receiver.listen.port)]
    assert {node.name, web.name} <= {peer.name for peer in receiver.peers}
    assert [peer.name for peer in node_receiver.peers] == [server.name] == [node.server_name]
    assert (node.data / node.datasets[0].path).is_dir()


def test_certificates_are_made_as_it_stands(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name in ("certificates.sh", "request.sh"):
        (script,) = named("sh", name)
        subprocess.run(["/bin/sh", "-ec", script], cwd=tmp_path, env=environment, check=True)
    files = {"certificate": "host.crt", "key": "host.key", "authority": "ca/ca.crt", "revoked": "ca/crl.pem"}
    tls = TlsConfig(**{key: tmp_path / file for key, file in files.items()})
    assert Credentials(tls, Identity("node-a", Role.CLIENT)).not_after > time.time()


def test_the_commands_for_certificates_exist() -> None:
    told = set(re.findall(r"`?fedsim-ca ([a-z]+)", README))
    assert told == set(ca.commands) - {"crl", "show"}


def test_the_task_of_the_lab_by_hand_can_be_submitted() -> None:
    (task,) = re.findall(r"cat > task\.yml <<END\n(.*?)END\n", README, re.DOTALL)
    settings, notes = parse_settings(yaml.safe_load(task))
    assert notes == []
    assert f"task-1-round-{settings.num_rounds:04d}.safetensors" in README


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)|(?:src|srcset)=\"([^\"]+)\"", text)
    local = [target for pair in targets for target in pair if target and "://" not in target]
    assert local or document == "CHANGELOG.md"
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs").iterdir())
    assert pictures
    assert [picture.name for picture in pictures if picture.stat().st_size > MAX_PICTURE_BYTES] == []


def test_the_simulation_runs_as_it_stands(tmp_path: Path) -> None:
    (program,) = named("python", "simulate.py")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    accuracy, digest = run.stdout.split()
    assert float(accuracy) > 0.8
    assert re.fullmatch("[0-9a-f]{64}", digest)


USE_OUR_LAB = """
from pathlib import Path
import numpy as np
from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.simulate import simulate
from fedsim.settings import parse_settings

rng = np.random.default_rng(0)
Path("mine").mkdir()
labels = rng.integers(3, size=300)
np.save("mine/features.npy", rng.normal(size=(300, 4)) + labels[:, None] * 3)
np.save("mine/labels.npy", labels)
mine = load_dataset(DataSetConfig(name="mine", path=Path("mine"), test_share=0.2), Path())
settings, _ = parse_settings({"model": "narrow", "dataset": "mine", "partition": "iid", "num_clients": 10,
                              "fraction_train": 1, "num_rounds": 5, "local_learning_rate": 0.05})
print(simulate(settings, mine).rounds[-1].metrics.accuracy)
"""


def test_a_model_and_a_format_of_ones_own_are_found_once_installed(tmp_path: Path) -> None:
    source, installed = tmp_path / "source", tmp_path / "installed"
    for language, name in (("toml", "our-lab/pyproject.toml"), ("python", "our-lab/our_lab.py")):
        (content,) = named(language, name)
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(content, encoding="utf-8")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    install += ["--no-build-isolation", "--no-deps", "--target", str(installed), str(source / "our-lab")]
    subprocess.run(install, check=True)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    run = subprocess.run(
        [sys.executable, "-c", USE_OUR_LAB], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) > 0.8
