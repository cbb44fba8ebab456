"""Checks of models."""

from __future__ import annotations

import numpy as np

from fedsim import plugins
from fedsim.learning.examples import DataSet, Examples
from fedsim.learning.networks import initial_vector
from fedsim.learning.objectives.next_token import NextToken
from fedsim.messages import ModelSpec
from fedsim.testing.conformance.candidate import NAME, NUM_CLASSES, Candidate, require, require_reproducible_task


def begins_deterministically(candidate: Candidate) -> None:
    """The seed decides all initial parameters; they are finite, and every one takes part in the output."""
    spec = ModelSpec(name=NAME, feature_shape=candidate.feature_shape, num_classes=NUM_CLASSES)
    objective = NextToken() if candidate.plugin.targets == "tokens" else None
    one, two, other = (initial_vector(spec, seed, candidate.make(), objective) for seed in (1, 1, 2))
    require(bool(np.isfinite(one).all()), "initial parameters are not finite")
    require(one.tobytes() == two.tobytes(), "the same seed gave different initial parameters")
    require(one.tobytes() != other.tobytes(), "two seeds gave the same initial parameters")


def model_trains_reproducibly(candidate: Candidate) -> None:
    """A whole task, trained twice, ends with the same model."""
    if candidate.plugin.targets == "tokens":
        symbols = np.random.default_rng(11).integers(NUM_CLASSES, size=(12, candidate.feature_shape[0] + 1))
        train = Examples(symbols[:, :-1].astype(np.uint8), symbols[:, 1:], targets="tokens")
        data, objective = DataSet(train, None, NUM_CLASSES), "next_token"
    else:
        data, objective = None, "classification"
    require_reproducible_task(candidate, plugins.MODELS, "model", data=data, objective=objective, num_clients=3)


CHECKS = (begins_deterministically, model_trains_reproducibly)
