"""The documentation promises nothing that is not so: its files, links, tables and settings are tried."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import click
import generate
import pytest
import yaml
from documentation_support import PAGES, ROOT, TEXT, named
from pydantic import BaseModel

from fedsim import errors
from fedsim.cli.main import cli
from fedsim.config import ClientConfig, ReceiverConfig, ServerConfig, WebConfig, load_config
from fedsim.seed_settings import SEED_NAMES
from fedsim.settings import TaskSettings, parse_settings
from fedsim.spool.kinds import KINDS, Kind
from fedsim.wire.protocol.frames import FrameType
from fedsim_fleet.ca import ca

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
HOW_TO = (ROOT / "docs" / "how-to" / "certificates.md").read_text(encoding="utf-8")
MAX_README_LINES = 180
PROTOCOL = (ROOT / "daemons" / "fedsim" / "wire" / "PROTOCOL.md").read_text(encoding="utf-8")
SAMPLES = ROOT / "etc" / "fedsim"
CONFIGS: dict[str, type[BaseModel]] = {
    "server": ServerConfig,
    "receiver": ReceiverConfig,
    "client": ClientConfig,
    "web": WebConfig,
}
MAX_PICTURE_BYTES = 200 * 1024


def cells(markdown: str) -> list[list[str]]:
    """The cells of a generated table, without its head."""
    rows = [re.split(r"(?<!\\)\|", line[1:-1]) for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_each_kind_of_message_is_described_with_all_its_fields() -> None:
    kinds, bodies = cells(generate.message_kinds()), cells(generate.message_bodies())
    assert sorted(row[0] for row in kinds) == sorted(f"`{kind}`" for kind in Kind)
    for kind, spec in KINDS.items():
        rows = [row for row in bodies if row[0] == f"`{kind}`"]
        assert [row[1] for row in rows] == [f"{route.sender} → {route.receiver}" for route in spec.routes]
        for (_, _, content), route in zip(rows, spec.routes, strict=True):
            model = getattr(route.body, "model", None) or getattr(route.body, "meta", None)
            names = model.model_fields if model else route.body
            assert [name for name in names if f"`{name}`" not in content] == []
    for frame in FrameType:
        assert re.search(rf"\| [^|]*\b{frame.value} {frame.name}\b", PROTOCOL), frame
    text = PROTOCOL.partition("## A transfer")[2]
    for setting in ("begin", "accepts_files", "require_approval"):
        assert f"`{setting}`" in text


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").splitlines()
    pages = [str(page.relative_to(ROOT / "docs").with_suffix("")) for page in PAGES]
    assert [page for page in pages if page not in listed] == ["index"]


def test_every_package_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    packages = [path.parent.name for path in (ROOT / "daemons" / "fedsim").glob("*/__init__.py")]
    assert sorted(name for name in packages if f"`{name}`" not in text) == []


def test_every_setting_is_explained() -> None:
    rows = cells(generate.settings())
    assert [row[0] for row in rows] == [f"`{name}`" for name in TaskSettings.model_fields]
    assert all(row[3] and row[4] for row in rows)
    translated = {row[2].strip("`"): row[0].strip("`") for row in rows if row[2]}
    assert translated == SEED_NAMES


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_of_a_sample_is_in_the_reference(name: str) -> None:
    rows = cells(generate.yaml_keys(name))
    keys = {row[0].strip("`") for row in rows}
    assert [row[0] for row in rows if not row[-1]] == []
    sample = yaml.safe_load((SAMPLES / f"{name}.yml").read_text(encoding="utf-8"))
    assert set(sample) <= keys
    assert set(CONFIGS[name].model_fields) <= keys


def test_built_in_plugins_are_explained() -> None:
    assert "## Models" in generate.all_plugins()
    for group in generate.GROUPS:
        assert all(name and meaning for name, meaning, *_ in cells(generate.plugins(group))), group


def test_every_command_and_option_is_explained() -> None:
    for name, command in generate.COMMANDS.items():
        text = generate.commands(name)
        below = command.commands if isinstance(command, click.Group) else {}
        assert all(f"### `{name} {part}`" in text for part in below)
        options = [line for line in text.splitlines() if line.startswith("| `-")]
        assert [line for line in options if line.endswith("|  |")] == []


def test_every_route_of_the_api_is_described() -> None:
    described = (ROOT / "daemons" / "fedsim" / "web" / "API.md").read_text(encoding="utf-8")
    described = re.sub(r"\b(N|R|ID)\b", "<>", described)
    for method, path, _ in cells(generate.api_routes()):
        short = re.sub(r"<[^>]*>", "<>", path.strip("`").removeprefix("/api/v1"))
        assert re.search(rf"`{method.strip('`')} {re.escape(short)}[`?]", described), (method, path)


def test_every_command_but_the_demonstration_takes_json() -> None:
    def lacking(name: str, command: click.Command) -> list[str]:
        if isinstance(command, click.Group):
            return [missing for part, below in command.commands.items() for missing in lacking(f"{name} {part}", below)]
        return [] if any("--json" in parameter.opts for parameter in command.params) else [name]

    assert lacking("fedsim", cli) == ["fedsim demo"]


def test_exit_codes_are_those_of_the_command() -> None:
    codes = [value for name, value in vars(errors).items() if name.startswith("EX_")]
    assert sorted({int(row[0].strip("`")) for row in cells(generate.exit_codes())}) == sorted({*codes, 130})


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_on_the_pages_is_valid_with_the_sample(name: str, tmp_path: Path) -> None:
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


def test_the_commands_for_certificates_exist() -> None:
    told = set(re.findall(r"`?fedsim-ca ([a-z]+)", HOW_TO))
    assert told == set(ca.commands) - {"crl", "show", "sign-all"}


def test_the_task_of_the_lab_by_hand_can_be_submitted() -> None:
    (task,) = re.findall(r"cat > task\.yml <<END\n(.*?)END\n", TEXT, re.DOTALL)
    settings, notes = parse_settings(yaml.safe_load(task))
    assert notes == []
    assert f"task-1-round-{settings.num_rounds:04d}.safetensors" in TEXT


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)|(?:src|srcset)=\"([^\"]+)\"", text)
    local = [target for pair in targets for target in pair if target and "://" not in target]
    assert local or document != "README.md"
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "pictures").iterdir())
    assert pictures
    assert [picture.name for picture in pictures if picture.stat().st_size > MAX_PICTURE_BYTES] == []


def test_settings_with_options_are_accepted_as_shown() -> None:
    for shown in named("yaml", "task.yml"):
        assert parse_settings(yaml.safe_load(shown))[1] == []


@pytest.mark.parametrize(
    ("file", "first"), [("robust_rules.py", "class TrimmedMean"), ("tests/test_robust_rules.py", "@pytest.mark")]
)
def test_the_strategy_on_the_page_is_that_of_the_example_package(file: str, first: str) -> None:
    (shown,) = named("python", f"robust-rules/{file}")
    example = (ROOT / "examples" / "robust-rules" / file).read_text(encoding="utf-8")
    assert shown[shown.index(first) :] in example
