from __future__ import annotations

import json

import pytest

from fedsim.cli.settings_file import override, parse_settings_text
from fedsim.errors import BadInput
from fedsim.settings import parse_settings


def test_values_in_yaml_stay_what_was_typed() -> None:
    text = "title: 2026-01-01\nlocal_learning_rate: 1e-2\nmodel: 2nn  # a comment\niid: 0\n"
    expected = {"title": "2026-01-01", "local_learning_rate": "1e-2", "model": "2nn", "iid": "0"}
    assert parse_settings_text(text) == expected


def test_every_default_survives_yaml_and_json() -> None:
    defaults, _ = parse_settings({})
    yaml = "\n".join(
        f"{name}: {json.dumps(value) if isinstance(value, dict | tuple) else '' if value is None else value}"
        for name, value in defaults.model_dump().items()
    )
    for text in (yaml, defaults.model_dump_json()):
        assert parse_settings(parse_settings_text(text))[0] == defaults


@pytest.mark.parametrize("text", ["{num_rounds: 5, title: a}", "{\n  num_rounds: 5,\n  title: a,\n}"])
def test_yaml_may_have_braces(text: str) -> None:
    assert {name: str(value) for name, value in parse_settings_text(text).items()} == {"num_rounds": "5", "title": "a"}


def test_nothing_is_no_settings() -> None:
    assert parse_settings_text("") == parse_settings_text("# only words\n") == parse_settings_text("{}") == {}


def test_numbers_that_json_lacks_are_left_for_the_web_to_refuse() -> None:
    assert parse_settings_text('{"alpha": NaN}') == {"alpha": "NaN"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\na: 2\n", "'a' is given twice"),
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ("- a\n- b\n", "names and values"),
        ("just words", "names and values"),
        ("a: [1", "line 1"),
        ('{"a": }', "column 7"),
        ("a: \x00", "not valid YAML"),
        ("[" * 20_000, "too deep"),
    ],
)
def test_what_is_no_mapping_is_refused_with_its_place(text: str, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        parse_settings_text(text)


def test_an_override_replaces_every_name_of_the_setting() -> None:
    assert override({"epoch": "1", "seed": "3"}, (("local_epochs", "2"),)) == {"local_epochs": "2", "seed": "3"}
    assert override({"local_epochs": "1"}, (("epoch", "2"),)) == {"epoch": "2"}


def test_another_model_keeps_the_data_set_that_the_originals_name_meant() -> None:
    changed = override({"modelname": "cifar10_cnn"}, (("model", "cnn"),))
    assert changed == {"model": "cnn", "dataset": "cifar10"}
