"""The task form and the words for what is wrong in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim import plugins
from fedsim.plugin_settings import PLUGIN_SETTINGS
from fedsim.settings import TaskSettings, parse_settings
from fedsim.web import form_fields, forms
from fedsim.web.catalogue import Catalogue, DataSetSummary, NodeView, check_settings
from fedsim.web.errors import Fault
from fedsim.web.i18n import translations_of

MNIST = DataSetSummary("mnist", ("node-1",), True, 60_000, 10_000, (28, 28, 1), 10, 1)
KNOWN = Catalogue((NodeView("node-1", 0.0, True, None),), {"mnist": MNIST})
NAME_RULE = "must be a name of at most 64 letters, digits, “_”, “.” or “-”, beginning with a letter or digit"
NO_NODES = Catalogue((), {})


def problems(typed: dict[str, object], catalogue: Catalogue = KNOWN) -> dict[str, str]:
    with pytest.raises(Fault) as caught:
        check_settings(typed, catalogue)
    assert caught.value.status == 422
    return {name: str(text) for name, text in caught.value.problems.items()}


def test_the_form_has_every_setting_and_menus_every_choice() -> None:
    general = [field for group in form_fields.form_groups() for field in group.fields]
    assert {field.name for field in general} == {name for name in TaskSettings.model_fields if "_options" not in name}
    menus = {field.name: [value for value, _ in field.choices] for field in general if field.choices}
    for setting, group in PLUGIN_SETTINGS.items():
        assert [name for name in menus[setting] if name] == list(plugins.names(group))
    for name, values in menus.items():
        for value in values:
            TaskSettings.model_validate({"keep_best": "accuracy", name: value})


def test_a_form_sent_back_unchanged_gives_the_same_settings() -> None:
    settings, _ = parse_settings(
        {
            "model": "mlp",
            "model_options": {"hidden": "5, 7"},
            "strategy": "fedprox",
            "strategy_options": {"mu": 0.125},
            "transforms": ["identity"],
            "local_learning_rate": 1e-05,
            "round_timeout_seconds": 12.5,
            "seed": 2**63 - 1,
            "title": "ein <b>Titel</b>",
        }
    )
    again, _ = parse_settings(forms.settings_from(forms.form_values(settings)))
    assert again == settings
    assert again.model_options == {"hidden": [5, 7]}


@given(rate=st.floats(min_value=1e-300, max_value=100))
def test_a_number_comes_back_to_its_last_digit_when_a_task_is_run_again(rate: float) -> None:
    settings, _ = parse_settings({"local_learning_rate": rate})
    again, _ = parse_settings(forms.settings_from(forms.form_values(settings)))
    assert again == settings


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("num_clients", "0", "must be at least 1"),
        ("num_clients", "1.5", "must be a whole number"),
        ("num_clients", "", "must be a whole number"),
        ("num_clients", "1" * 5000, "is too large"),
        ("num_clients", 2.5, "must be a whole number"),
        ("num_clients", None, "must be a whole number"),
        (
            "num_clients",
            "30001",
            "must be at most 30000: more clients cannot share the 60000 training examples of mnist",
        ),
        ("num_rounds", True, "must not be true or false"),
        ("fraction_train", "0", "must be greater than 0"),
        ("fraction_train", "1.1", "must be at most 1"),
        ("fraction_train", "nan", "must be a finite number"),
        ("fraction_train", [], "must be a number"),
        ("strategy_options", {"momentum": 1}, "is not an option of fedavg (options: weighting)"),
        ("model_options", {"hidden": "200, wide"}, "must be a whole number"),
        ("model_options", {"channels": 3}, "is not an option of 2nn (options: hidden)"),
        ("alpha", "1", "is not a setting any more; it is now partition_options.alpha of the partition dirichlet"),
        ("local_learning_rate", "fast", "must be a number"),
        ("title", "x" * 121, "must have at most 120 characters"),
        ("title", 7, "must be text"),
        ("partition", "pie", f"unknown partition 'pie' (available: {', '.join(plugins.names(plugins.PARTITIONS))})"),
        ("model", "resnet", f"unknown model 'resnet' (available: {', '.join(plugins.names(plugins.MODELS))})"),
        ("dataset", "imagenet", "no node has the data set “imagenet” (available: mnist)"),
        ("dataset", "../etc", NAME_RULE),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_in_plain_words_beside_its_field(field: str, value: object, problem: str) -> None:
    found = problems({field: value})
    assert {name.partition(".")[0]: text for name, text in found.items()} == {field: problem}


def test_all_problems_come_at_once_and_in_chinese_too() -> None:
    given = {"num_clients": "0", "local_epochs": "many", "model": "resnet", "dataset": "imagenet"}
    assert set(problems(given)) == set(given)
    with pytest.raises(Fault) as caught:
        check_settings(given, KNOWN)
    chinese = translations_of("zh_CN")
    assert caught.value.problems["num_clients"].to(chinese) == "不能小于 1"
    assert caught.value.problems["local_epochs"].to(chinese) == "必须是整数"


def test_an_unknown_setting_is_a_problem_that_lists_the_known_ones() -> None:
    assert "settings are kind, title, purpose, model" in problems({"num_cleints": 3})["num_cleints"]


def test_with_no_node_known_any_data_set_is_accepted_with_a_note() -> None:
    settings, notes = check_settings({"dataset": "imagenet"}, NO_NODES)
    assert settings.dataset == "imagenet"
    assert [str(note) for note in notes] == ["No node with the data set imagenet is online: the task waits for one."]


def test_each_node_is_one_client_where_the_partition_is_local() -> None:
    settings, _ = check_settings({"partition": "local", "num_clients": 100_000}, KNOWN)
    assert settings.num_clients == 100_000


def test_the_original_platforms_names_are_taken_and_save_path_is_reported_to_be_ignored() -> None:
    settings, notes = check_settings({"modelname": "mnist_cnn", "num_comm": "3", "save_path": "/tmp/x"}, KNOWN)  # noqa: S108 - text only
    assert (settings.model, settings.dataset, settings.num_rounds) == ("cnn", "mnist", 3)
    assert [str(note) for note in notes] == ["save_path is ignored: the server decides where files are stored"]
