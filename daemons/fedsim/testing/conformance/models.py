"""Checks of models. A model's module may import torch: only workers load it."""

from __future__ import annotations

import numpy as np

from fedsim import plugins
from fedsim.learning.models import initial_vector
from fedsim.testing.conformance.candidate import NUM_CLASSES, Candidate, require, require_reproducible_task


def begins_deterministically(candidate: Candidate) -> None:
    """The seed decides all initial parameters; they are finite, and every one takes part in the output."""
    with candidate.installed(plugins.MODELS) as name:
        one, two, other = (initial_vector(name, candidate.feature_shape, NUM_CLASSES, seed) for seed in (1, 1, 2))
    require(bool(np.isfinite(one).all()), "initial parameters are not finite")
    require(one.tobytes() == two.tobytes(), "the same seed gave different initial parameters")
    require(one.tobytes() != other.tobytes(), "two seeds gave the same initial parameters")


def model_trains_reproducibly(candidate: Candidate) -> None:
    """A whole task, trained twice, ends with the same model."""
    require_reproducible_task(candidate, plugins.MODELS, "model", num_clients=3)


CHECKS = (begins_deterministically, model_trains_reproducibly)
