"""What pydantic rejects is explained in fedsim's words, for every type of error that a model can raise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fedsim import messages, plugins
from fedsim.config import ClientConfig, ReceiverConfig, ServerConfig, WebConfig, load_config
from fedsim.errors import ConfigError
from fedsim.problems import _OTHER, _WORDINGS, OWN_TYPES, problem_text
from fedsim.settings import TaskSettings

WRONG: list[Any] = [
    None,
    True,
    -1,
    10**30,
    0.5,
    math.nan,
    "",
    "-",
    "x" * 5000,
    "1" * 5000,
    "\udcff",
    b"\xff",
    [],
    [[]],
    list(range(2000)),
    {},
    {"x": {}},
    {1: 2},
    {"a b": 1},
    object(),
]


def _models() -> Iterator[type[BaseModel]]:
    yield from (ClientConfig, ReceiverConfig, ServerConfig, WebConfig, TaskSettings)
    yield from (
        found for found in vars(messages).values() if isinstance(found, type) and issubclass(found, messages.Message)
    )
    for group in plugins.GROUPS:
        yield from (plugins.load(group, name).Options for name in plugins.names(group))


def _with_parts(model: type[BaseModel], seen: set[type[BaseModel]]) -> None:
    if model in seen:
        return
    seen.add(model)
    for field in model.model_fields.values():
        for part in _parts(field.annotation):
            _with_parts(part, seen)


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _parts(inner)


@pytest.mark.filterwarnings("ignore:__int__ returned non-int")
def test_every_type_of_error_has_a_sentence() -> None:
    models: set[type[BaseModel]] = set()
    for model in _models():
        _with_parts(model, models)
    assert len(models) > 30
    kinds: set[str] = set()
    for model in models:
        for name in [*model.model_fields, "no_such_field"]:
            for value in WRONG:
                for wrapped in (value, [value], {"x": value}):
                    try:
                        model.model_validate({name: wrapped})
                    except ValidationError as error:
                        for item in error.errors(include_url=False):
                            kinds.add(item["type"])
                            said = problem_text(item)
                            assert said, item
                            assert item["type"] in OWN_TYPES or said != item["msg"]
                            assert said != _OTHER[0], f"add {item['type']} to the table"
    assert len(kinds) > 10
    assert kinds <= {*_WORDINGS, *OWN_TYPES, "string_pattern_mismatch"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("server: '[::1]:9001'", "At 'server': must be written with two keys: {address: '::1', port: 9001}"),
        ("server: 'host:9001'", "At 'server': must be written with two keys: {address: 'host', port: 9001}"),
        ("server: host:9001", "At 'server': must be written with two keys: {address: 'host', port: 9001}"),
        ("server: host", "At 'server': must be written with two keys, such as {address: 127.0.0.1, port: 9001}"),
        ("server: 9001", "At 'server': must be written with two keys, such as {address: 127.0.0.1, port: 9001}"),
        (
            "server: {address: 'localhost:9001', port: 1}",
            "At 'server.address': must be only the host, without its port: address: localhost, port: 9001",
        ),
        (
            "server: {address: '[::1]:9001', port: 1}",
            "At 'server.address': must be only the host, without its port: address: ::1, port: 9001",
        ),
        ("server: {address: 'http://host', port: 1}", "At 'server.address': 'http://host' must be an IP address or"),
        ("server: {address: 127.0.0.1, port: 99999}", "At 'server.port': must be at most 65535"),
        ("server: {address: 5, port: 1}", "At 'server.address': must be text; YAML reads it as a number: write it in"),
        ("name: [a]", "At 'name': must be text; YAML reads [ as the start of a list: write it in quotes"),
        ("name: no", "At 'name': must be text; YAML reads it as false (like no and off): write it in quotes"),
        ("name: -x", "At 'name': must be a name of at most 64 letters, digits"),
        ("device: tpu", "At 'device': must be one of auto, cpu, cuda"),
        ("datasets: 5", "At 'datasets': must be a list"),
        ("institution: []", "At 'institution': must consist of names and values"),
        (
            "engine_options: {threads: 5}",
            "At 'engine_options': options of the engine batched: threads: is not an option",
        ),
    ],
)
def test_a_value_in_yaml_is_answered_with_the_right_form(tmp_path: Path, line: str, problem: str) -> None:
    key = line.split(":", maxsplit=1)[0]
    given = {"name": "name: a", "server": "server: {port: 9001}", "datasets": "datasets: [{name: x, path: x}]"}
    path = tmp_path / "client.yml"
    path.write_text("\n".join([*(text for name, text in given.items() if name != key), line]), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ClientConfig)
    (told,) = caught.value.problems
    assert told.startswith(problem)


@pytest.mark.parametrize("address", ["[2001:db8::1]", "'[2001:db8::1]'", "2001:db8::1"])
def test_an_ipv6_address_may_have_brackets(tmp_path: Path, address: str) -> None:
    path = tmp_path / "client.yml"
    server = f"server: {{address: {address}, port: 9001}}"
    path.write_text(f"name: a\ninsecure_plaintext: true\n{server}\ndatasets: [{{name: x, path: x}}]\n")
    assert load_config(path, ClientConfig).server.address == "2001:db8::1"


def test_an_ipv6_address_that_yaml_cannot_read_is_answered_with_the_right_form(tmp_path: Path) -> None:
    path = tmp_path / "client.yml"
    path.write_text("name: a\nserver: {address: [::1], port: 9001}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="an IPv6 address is written without brackets, as ::1"):
        load_config(path, ClientConfig)
