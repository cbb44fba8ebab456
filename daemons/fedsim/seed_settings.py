"""The names of settings in the original platform's `initparam.json`, and what its values mean."""

from __future__ import annotations

import re
from typing import Any

# The original platform's name -> ours.
SEED_NAMES = {
    "gpu": "device",
    "num_of_clients": "num_clients",
    "cfraction": "fraction_train",
    "epoch": "local_epochs",
    "batchsize": "local_batch_size",
    "modelname": "model",
    "learning_rate": "local_learning_rate",
    "val_freq": "evaluate_every",
    "save_freq": "save_every",
    "num_comm": "num_rounds",
    "iid": "partition",
}
SEED_MODELS = {"mnist_2nn": ("2nn", "mnist"), "mnist_cnn": ("cnn", "mnist"), "cifar10_cnn": ("cifar_cnn", "cifar10")}
_IID = {"0": "shards", "false": "shards", "1": "iid", "true": "iid"}
_GPU = re.compile(r"\d{1,4}(\s*,\s*\d{1,4})*")
SAVE_PATH_NOTE = "save_path is ignored: the server decides where files lie"


def translate(given: dict[str, Any]) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """Seed names to ours; returns the settings, notes for the person, and problems by field."""
    settings: dict[str, Any] = {}
    notes: list[str] = []
    problems: dict[str, str] = {}
    implied_dataset: str | None = None
    for name, value in given.items():
        ours = SEED_NAMES.get(name, name)
        if name == "save_path":
            notes.append(SAVE_PATH_NOTE)
        elif ours in settings or (ours != name and ours in given):
            problems[name] = f"is given twice: {name} is another name of {ours}"
        elif isinstance(value, bool) and name != "iid" and "." not in name:  # pydantic would take true for 1
            problems[ours] = "must not be true or false"
        elif name == "gpu":
            # The original's device number: which GPU is the node's affair.
            settings[ours] = "auto"
            if not _GPU.fullmatch(str(value)):
                problems[name] = "must be the number of a GPU; the node decides which one it takes"
        elif name == "iid":
            settings[ours] = _IID.get(str(value).lower(), "iid")
            if str(value).lower() not in _IID:
                problems[name] = "must be 0 (each client holds few labels) or 1"
        elif ours == "model" and isinstance(value, str) and value in SEED_MODELS:
            settings[ours], implied_dataset = SEED_MODELS[value]
        else:
            settings[ours] = value
    if implied_dataset is not None:
        settings.setdefault("dataset", implied_dataset)
    return settings, notes, problems
