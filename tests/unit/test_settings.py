"""A task's settings as people give them: our names or the original platform's, and every problem at once."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import pytest

from fedsim.seed_settings import SAVE_PATH_NOTE
from fedsim.settings import SettingsError, TaskSettings, parse_settings

# The original platform's own defaults, under its own names.
SEED: dict[str, Any] = {
    "gpu": "0",
    "num_of_clients": 100,
    "cfraction": 0.1,
    "epoch": 5,
    "batchsize": 10,
    "modelname": "mnist_2nn",
    "learning_rate": 0.01,
    "val_freq": 5,
    "save_freq": 20,
    "num_comm": 10,
    "save_path": "./checkpoints",
    "iid": 0,
}


def problems(given: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(SettingsError) as caught:
        parse_settings(given)
    return caught.value.problems


def test_the_original_platforms_defaults_are_ours() -> None:
    settings, notes = parse_settings(json.loads(json.dumps(SEED)))
    assert settings == parse_settings({})[0]
    assert notes == [SAVE_PATH_NOTE]


@pytest.mark.parametrize(
    ("modelname", "model", "dataset"),
    [("mnist_2nn", "2nn", "mnist"), ("mnist_cnn", "cnn", "mnist"), ("cifar10_cnn", "cifar_cnn", "cifar10")],
)
def test_a_model_of_the_original_implies_its_data_set(modelname: str, model: str, dataset: str) -> None:
    settings, _ = parse_settings({"modelname": modelname})
    assert (settings.model, settings.dataset) == (model, dataset)


@pytest.mark.parametrize("names", list(permutations(["modelname", "dataset", "iid"])))
def test_the_order_of_the_fields_does_not_matter(names: tuple[str, ...]) -> None:
    given = {"modelname": "mnist_2nn", "dataset": "fashion-mnist", "iid": 1}
    settings, _ = parse_settings({name: given[name] for name in names})
    assert (settings.model, settings.dataset, settings.partition) == ("2nn", "fashion-mnist", "iid")


@pytest.mark.parametrize("names", [("epoch", "local_epochs"), ("local_epochs", "epoch")])
def test_a_setting_under_both_its_names_is_refused(names: tuple[str, ...]) -> None:
    assert problems(dict.fromkeys(names, 5)) == {"epoch": "is given twice: epoch is another name of local_epochs"}


def test_every_problem_is_reported_at_once() -> None:
    told = problems(
        {
            "epoch": 0,
            "modelname": "zz",
            "cfraction": 2,
            "gpu": "xyz",
            "colour": "blue",
            "partition": "dirichlet",
            "partition_options": {"alpha": "nan"},
        }
    )
    assert set(told) == {"local_epochs", "model", "fraction_train", "gpu", "colour", "partition_options.alpha"}
    assert "2nn" in told["model"], "those there are"
    assert "num_rounds" in told["colour"]


@pytest.mark.parametrize("value", [[], {}, None, 3, True])
def test_a_model_that_is_no_text_is_a_problem_not_a_crash(value: object) -> None:
    assert set(problems({"modelname": value})) == {"model"}


@pytest.mark.parametrize(
    ("clients", "fraction", "cohort"), [(100, 0.1, 10), (100, 0.29, 29), (3, 0.1, 1), (1_000_000, 1.0, 1_000_000)]
)
def test_a_cohort_is_what_the_person_meant(clients: int, fraction: float, cohort: int) -> None:
    assert TaskSettings(num_clients=clients, fraction_train=fraction).cohort_size == cohort


def test_options_are_checked_against_the_chosen_plugin_and_completed_with_its_defaults() -> None:
    settings, _ = parse_settings({"strategy": "fedprox", "strategy_options.mu": "0.1"})
    assert settings.strategy_options == {"weighting": "examples", "mu": 0.1}
    assert settings.partition_options == {}
    assert TaskSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("given", "field", "problem"),
    [
        ({"strategy_options": {"mu": 1}}, "strategy_options.mu", "is not an option of fedavg (options: weighting)"),
        ({"objective_options": {"mu": 1}}, "objective_options.mu", "classification has no options"),
        ({"strategy": "fedsgd"}, "strategy", "unknown strategy 'fedsgd' (available: bulyan, "),
        ({"aggregation_options": {"mu": 1}}, "aggregation_options.mu", "choose aggregation first"),
        ({"alpha": 1}, "alpha", "it is now partition_options.alpha of the partition dirichlet"),
        ({"sampler_options": {"size": 1}, "sampler_options.size": 2}, "sampler_options.size", "is given twice"),
    ],
)  # fmt: skip
def test_an_option_that_does_not_apply_is_a_problem_that_lists_the_right_ones(
    given: dict[str, Any], field: str, problem: str
) -> None:
    found = problems(given)
    assert set(found) == {field}
    assert problem in found[field]


def test_settings_of_a_plugin_that_is_no_longer_installed_stay_readable() -> None:
    row = TaskSettings.model_validate({"strategy": "ours", "strategy_options": {"beta": 3, "kinds": ["a", "b"]}})
    assert row.options("strategy") == {"beta": 3, "kinds": ["a", "b"]}
