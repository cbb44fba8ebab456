"""Checks of models."""

from __future__ import annotations

import numpy as np

from fedsim import plugins
from fedsim.learning.networks import initial_vector
from fedsim.messages import ModelSpec
from fedsim.testing.conformance.candidate import NAME, NUM_CLASSES, Candidate, require, require_reproducible_task


def begins_deterministically(candidate: Candidate) -> None:
    """The seed decides all initial parameters; they are finite, and every one takes part in the output."""
    spec = ModelSpec(name=NAME, feature_shape=candidate.feature_shape, num_classes=NUM_CLASSES)
    one, two, other = (initial_vector(spec, seed, candidate.make()) for seed in (1, 1, 2))
    require(bool(np.isfinite(one).all()), "initial parameters are not finite")
    require(one.tobytes() == two.tobytes(), "the same seed gave different initial parameters")
    require(one.tobytes() != other.tobytes(), "two seeds gave the same initial parameters")


def model_trains_reproducibly(candidate: Candidate) -> None:
    """A whole task, trained twice, ends with the same model."""
    require_reproducible_task(candidate, plugins.MODELS, "model", num_clients=3)


CHECKS = (begins_deterministically, model_trains_reproducibly)
