"""Configuration files: the samples are valid, and all errors of an invalid file are reported with their paths."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from fedsim.config import ClientConfig, ReceiverConfig, ServerConfig, WebConfig, load_config
from fedsim.errors import EX_CONFIG, ConfigError

SAMPLES = Path(__file__).parents[2] / "etc" / "fedsim"
DAEMONS: dict[str, type[BaseModel]] = {
    "server": ServerConfig,
    "receiver": ReceiverConfig,
    "client": ClientConfig,
    "web": WebConfig,
}


@pytest.mark.parametrize("name", DAEMONS)
def test_the_sample_is_valid(name: str) -> None:
    assert isinstance(load_config(SAMPLES / f"{name}.yml", DAEMONS[name]), DAEMONS[name])


@pytest.mark.parametrize("name", DAEMONS)
def test_every_line_that_a_sample_comments_out_is_valid_too(name: str, tmp_path: Path) -> None:
    """A sample that is wrong once a `#` is removed has rotted."""
    lines = (SAMPLES / f"{name}.yml").read_text(encoding="utf-8").splitlines()
    loaded = yaml.safe_load("\n".join(lines))
    for number, line in enumerate(lines):
        words = line.removeprefix("#").strip().split(":")[0]
        if line.startswith("# ") and line.endswith(":") and " " not in words:
            block = [line[2:]]
            for below in lines[number + 1 :]:
                if not below.startswith("#   "):
                    break
                block.append(below[2:])
            changed = {**loaded, **yaml.safe_load("\n".join(block))}
            path = tmp_path / f"{words}.yml"
            path.write_text(yaml.safe_dump(changed), encoding="utf-8")
            load_config(path, DAEMONS[name])


@pytest.mark.parametrize("name", DAEMONS)
def test_validate_config_exits_with_78_and_names_every_problem(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (program,) = entry_points(group="console_scripts", name=f"fedsim-{name}")
    run = program.load()
    content = yaml.safe_load((SAMPLES / f"{name}.yml").read_text(encoding="utf-8"))
    path = tmp_path / "wrong.yml"
    path.write_text(yaml.safe_dump({**content, "name": "no spaces please", "colour": "blue"}), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [program.name, "--config", str(path), "--validate-config"])
    assert run() == EX_CONFIG
    told = capsys.readouterr().err
    assert "At 'name':" in told
    assert "At 'colour': unknown key (available: " in told
    sys.argv[2] = str(SAMPLES / f"{name}.yml")
    assert run() == 0, capsys.readouterr().err


def problems(tmp_path: Path, text: str, model: type[BaseModel] = ServerConfig) -> list[str]:
    path = tmp_path / "config.yml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, model)
    return caught.value.problems


def test_a_problem_deep_inside_has_its_path(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "nodes: [{name: a}, {name: b, port: 70000}]")
    assert problem.startswith("At 'nodes[1].port':")


def test_an_unknown_key_deep_inside_is_named_with_those_that_would_be_right(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "nodes: [{name: a, adress: x}]")
    assert problem == "At 'nodes[0].adress': unknown key (available: name, address, port, listens, max_clients)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nodes: [", "not valid YAML"),
        ("name: a\nname: b", "is given twice"),
        ("- a\n- b", "must contain keys and values"),
        ("", "At 'nodes': is missing"),
    ],
)
def test_a_file_that_is_no_configuration_says_why(tmp_path: Path, text: str, words: str) -> None:
    assert words in "\n".join(problems(tmp_path, text))


def test_a_file_that_is_not_there_or_not_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "absent.yml", ServerConfig)
    path = tmp_path / "binary.yml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(path, ServerConfig)


def test_plain_sockets_stay_on_loopback_unless_the_owner_insists(tmp_path: Path) -> None:
    far = "nodes: [{name: a, address: 192.0.2.1}]\n"
    (problem,) = problems(tmp_path, far)
    assert "192.0.2.1 is not on loopback" in problem
    path = tmp_path / "config.yml"
    path.write_text(far + "insecure_plaintext: true\n", encoding="utf-8")
    assert load_config(path, ServerConfig).insecure_plaintext


def test_the_pages_stay_on_loopback_whatever_the_way_to_the_receiver(tmp_path: Path) -> None:
    tls = "tls: {certificate: a, key: b, authority: c}\nserver: {address: 192.0.2.1, port: 9001}\n"
    (problem,) = problems(tmp_path, tls + "listen: {address: 0.0.0.0, port: 80}", WebConfig)
    assert problem.startswith("At 'listen': 0.0.0.0 is not on loopback: run the web behind an HTTPS proxy")


def test_problems_that_concern_several_keys_are_reported_with_all_others_at_once(tmp_path: Path) -> None:
    text = """
        nodes: [{name: a, address: 192.0.2.1}, {name: b}]
        datasets: [{name: x, path: /secret, colour: red}, {name: y, path: y}]
        database: postgresql://fedsim:s3cret@host/fedsim
        poll_seconds: 0
        colour: red
    """
    told = problems(tmp_path, text)
    assert [problem.split(":")[0] for problem in told] == [
        "At 'database'",
        "At 'datasets[0].path'",
        "At 'datasets[0].colour'",
        "At 'nodes'",
        "At 'poll_seconds'",
        "At 'colour'",
    ]
    assert "s3cret" not in "".join(told)


def test_a_wrong_key_for_tls_is_one_problem_not_also_a_plain_socket(tmp_path: Path) -> None:
    told = problems(tmp_path, "tls: {certificate: a}\nnodes: [{name: a, address: 192.0.2.1}]")
    assert [problem.split(":")[0] for problem in told] == ["At 'tls.key'", "At 'tls.authority'"]


def test_a_data_set_outside_the_data_folder_is_refused(tmp_path: Path) -> None:
    text = "name: a\nserver: {port: 1}\ndatasets: [{name: x, path: ../secret}]"
    (problem,) = problems(tmp_path, text, ClientConfig)
    assert "must be inside the data folder" in problem


def test_models_and_formats_that_are_not_installed_are_named_with_those_that_are(tmp_path: Path) -> None:
    text = """
        name: a
        server: {port: 1}
        datasets: [{name: x, path: x, format: digitz}]
        institution: {models: [2nn, linear]}
    """
    a_format, a_model = problems(tmp_path, text, ClientConfig)
    assert a_format.startswith("At 'datasets[0].format': unknown format 'digitz' (available: cifar10, csv, digits")
    assert a_model.startswith("At 'institution.models[1]': unknown model 'linear' (available: 2nn, ")


def test_names_that_stand_twice_are_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "nodes: [{name: a}, {name: a, port: 9003}]")
    assert "a is listed more than once" in problem


@pytest.mark.parametrize(
    "text",
    ["listen: {{ port }}", "? [a]\n: b", "name: 2024-13-45", "name: !!int abc", "name: " + "9" * 5000, "[" * 3000],
)
def test_yaml_that_cannot_be_understood_is_a_problem_of_the_file_not_a_crash(tmp_path: Path, text: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert "not valid YAML" in problem
