"""Settings of version 0.1 become those of this version."""

from __future__ import annotations

from typing import Any

import pytest

from fedsim.legacy_settings import settings_from_0_1

# Version 0.1 wrote every setting, also those that did not apply.
WRITTEN: dict[str, Any] = {
    "model": "2nn",
    "partition": "shards",
    "alpha": 0.25,
    "num_clients": 100,
    "strategy": "fedavg",
    "weighting": "uniform",
    "proximal_mu": 0.5,
    "server_learning_rate": 2.0,
    "server_momentum": 0.75,
}
KEPT = {"model": "2nn", "partition": "shards", "num_clients": 100, "strategy": "fedavg"}


@pytest.mark.parametrize(
    ("chosen", "options"),
    [
        ({}, {"strategy_options": {"weighting": "uniform"}}),
        ({"strategy": "fedprox"}, {"strategy_options": {"weighting": "uniform", "mu": 0.5}}),
        (
            {"strategy": "fedavgm"},
            {"strategy_options": {"weighting": "uniform", "learning_rate": 2.0, "momentum": 0.75}},
        ),
        ({"strategy": "median"}, {}),
        (
            {"partition": "dirichlet", "strategy": "median", "linear": False},
            {"partition_options": {"alpha": 0.25}},
        ),
    ],
)
def test_what_applied_becomes_an_option_and_the_rest_is_removed(
    chosen: dict[str, Any], options: dict[str, Any]
) -> None:
    used = {name: value for name, value in chosen.items() if name != "linear"}
    assert settings_from_0_1(WRITTEN | chosen) == KEPT | used | options


def test_a_row_without_these_settings_stays_as_it_is() -> None:
    for settings in ({}, KEPT, {"strategy": "fedprox", "strategy_options": {"mu": 0.1}}):
        assert settings_from_0_1(settings) == settings


def test_converting_twice_changes_nothing() -> None:
    once = settings_from_0_1(WRITTEN | {"strategy": "fedprox", "partition": "dirichlet"})
    assert settings_from_0_1(once) == once


def test_settings_without_the_name_of_a_plug_in_mean_the_default_one() -> None:
    assert settings_from_0_1({"weighting": "uniform", "alpha": 1}) == {"strategy_options": {"weighting": "uniform"}}
