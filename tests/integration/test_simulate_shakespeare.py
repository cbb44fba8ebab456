"""A play is learnt by its speakers."""

from __future__ import annotations

import numpy as np
import pytest
from presence import real_data

from fedsim.config import DataSetConfig
from fedsim.data import DataSet, load_dataset
from fedsim.learning.simulate import simulate
from fedsim.settings import TaskSettings

PLAY = {
    "name": "shakespeare",
    "path": "input.txt",
    "format": "text",
    "access": "open",
    "speakers": True,
    "length": 40,
    "test_share": 0.1,
}


@pytest.mark.usefixtures("deterministic_torch")
def test_shakespeare_by_speaker_is_learnt_in_a_few_rounds() -> None:
    data = load_dataset(DataSetConfig.model_validate(PLAY), real_data("shakespeare"))
    assert data.train.clients is not None
    assert data.train.clients.max() > 200
    assert data.test is not None
    few = np.arange(0, len(data.test), 40)
    test = type(data.test)(data.test.features[few], data.test.labels[few], targets="tokens")
    settings = TaskSettings(
        dataset="shakespeare",
        model="shakespeare_lstm",
        model_options={"hidden": 64},
        objective="next_token",
        partition="natural",
        num_clients=20,
        fraction_train=0.2,
        local_batch_size=10,
        local_epochs=1,
        max_steps=40,
        optimizer="adam",
        local_learning_rate=0.01,
        num_rounds=4,
    )
    result = simulate(settings, DataSet(data.train, test, data.num_classes, data.data_schema))
    first, last = (result.rounds[at].metrics for at in (0, -1))
    assert (first["accuracy"] or 0) < 0.1
    assert (last["accuracy"] or 0) > 0.26  # a space at each place is right in fewer than 18 of 100
    assert (last["perplexity"] or 97) < 13
