"""The JSON between hosts: what is taken, and how a wrong one is explained."""

from __future__ import annotations

import json

import pytest

from fedsim.errors import BadInput
from fedsim.messages import Submission, read_message

TASK = "0123456789abcdef" * 2


def test_an_initparam_takes_the_field_s_words() -> None:
    text = json.dumps({"task": TASK, "settings": {"model": "2nn", "num_rounds": 3}})
    assert read_message(Submission, text, "it").settings.num_rounds == 3


def test_an_initparam_takes_the_original_platform_s_names_too() -> None:
    given = {"gpu": "0", "num_of_clients": 50, "cfraction": 0.2, "epoch": 1, "batchsize": 20, "modelname": "mnist_cnn"}
    more = {"learning_rate": 0.1, "val_freq": 2, "save_freq": 4, "num_comm": 8, "save_path": "./x", "iid": 1}
    settings = read_message(Submission, json.dumps({"task": TASK, "settings": {**given, **more}}), "it").settings
    assert (settings.model, settings.dataset, settings.partition, settings.device) == ("cnn", "mnist", "iid", "auto")
    assert (settings.num_clients, settings.fraction_train, settings.local_epochs) == (50, 0.2, 1)
    assert (settings.local_batch_size, settings.local_learning_rate) == (20, 0.1)
    assert (settings.evaluate_every, settings.save_every, settings.num_rounds) == (2, 4, 8)


def test_an_initparam_with_wrong_settings_names_each() -> None:
    text = json.dumps({"task": TASK, "settings": {"num_comm": 0, "colour": "red"}})
    with pytest.raises(BadInput, match=r"it is not a valid Submission: settings: .*num_rounds: .*colour: is not a"):
        read_message(Submission, text, "it")
