"""Converts settings of tasks, and models in checkpoints, that version 0.1 wrote to the form of this version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Settings of 0.1 that became options: (setting that names the plug-in, the plug-ins that have it, name of the option).
_OPTIONS = {
    "alpha": ("partition", {"dirichlet"}, "alpha"),
    "proximal_mu": ("strategy", {"fedprox"}, "mu"),
    "server_learning_rate": ("strategy", {"fedavgm"}, "learning_rate"),
    "server_momentum": ("strategy", {"fedavgm"}, "momentum"),
    "weighting": ("strategy", {"fedavg", "fedprox", "fedavgm"}, "weighting"),
}
# The defaults of 0.1, for a row that does not name the plug-in.
_DEFAULT_PLUGINS = {"partition": "shards", "strategy": "fedavg"}


def settings_from_0_1(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Move what belongs to one plug-in into the options of that plug-in.

    An option of a plug-in that the task did not use is removed, and so is `linear`, which follows from the strategy.
    Settings that are already in the form of this version are returned unchanged.
    """
    converted = {name: value for name, value in settings.items() if name not in _OPTIONS and name != "linear"}
    for name, (setting, plugins, option) in _OPTIONS.items():
        if name in settings and settings.get(setting, _DEFAULT_PLUGINS[setting]) in plugins:
            options = f"{setting}_options"
            converted[options] = {option: settings[name], **converted.get(options, {})}
    return converted


def model_spec_from_0_1(about: Mapping[str, Any]) -> dict[str, Any]:
    """A `ModelSpec` from what a checkpoint says of its model, in which 0.1 called the name `model`."""
    return {("name" if key == "model" else key): value for key, value in about.items()}
