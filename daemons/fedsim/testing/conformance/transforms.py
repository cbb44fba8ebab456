"""Checks of transforms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedsim.errors import BadInput
from fedsim.learning.simulate import simulate
from fedsim.learning.transforms import Transform
from fedsim.settings import TaskSettings
from fedsim.testing.conformance.candidate import Candidate, require, small_data
from fedsim.update import PARAMETERS, Layout, Update

SIZE = 211


def _layout() -> Layout:
    """That of a strategy which sends a second array."""
    return Layout({PARAMETERS: (SIZE,), "control": (SIZE,)})


def _update(layout: Layout) -> Update:
    vector = np.random.default_rng(3).normal(size=layout.size).astype(np.float32)
    return Update(base_round=1, num_clients=3, num_examples=40, metrics={}).with_arrays(layout.views(vector))


def _received() -> NDArray[np.float32]:
    return np.random.default_rng(4).normal(size=SIZE).astype(np.float32)


def _shapes(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def uploads_have_the_declared_layout(candidate: Candidate) -> None:
    """The arrays after the client side are float32, and those that `layout` returns."""
    transform: Transform = candidate.make()
    sent = transform.on_client(_update(_layout()), _received())
    declared = transform.layout(_layout())
    try:
        vector = declared.flatten(sent.arrays)
    except BadInput as error:
        raise AssertionError(str(error)) from error
    require(vector.dtype == np.float32, f"the arrays are {vector.dtype}; they must be float32")


def the_server_gets_the_strategys_arrays(candidate: Candidate) -> None:
    """After the server side an update has the arrays that the strategy declares; what arrived is only read."""
    transform: Transform = candidate.make()
    declared = transform.layout(_layout())
    vector = declared.flatten(transform.on_client(_update(_layout()), _received()).arrays).copy()
    vector.flags.writeable = False
    arrived = transform.on_server(_update(_layout()).with_arrays(declared.views(vector)))
    require(
        _shapes(arrived.arrays) == dict(_layout().shapes),
        f"the server side returns the arrays {_shapes(arrived.arrays)}, the strategy has {dict(_layout().shapes)}",
    )


def changes_only_what_it_returns(candidate: Candidate) -> None:
    """The client side changes neither the update that it is given nor the received model."""
    transform: Transform = candidate.make()
    update, received = _update(_layout()), _received()
    transform.on_client(update, received)
    require(np.array_equal(received, _received()), "the received model is changed")
    expected = _update(_layout()).arrays
    same = all(np.array_equal(update.arrays[name], array) for name, array in expected.items())
    require(same, "the update is changed; return another one")


def tasks_train(candidate: Candidate) -> None:
    """A whole task with the transform ends."""
    settings = TaskSettings(model="logistic", partition="iid", num_clients=6, fraction_train=1.0, num_rounds=2)
    simulate(settings, small_data(), chunk_clients=2, transforms=[candidate.make()])


CHECKS = (
    uploads_have_the_declared_layout,
    the_server_gets_the_strategys_arrays,
    changes_only_what_it_returns,
    tasks_train,
)
