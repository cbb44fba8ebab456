"""Checks of transforms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedsim import plugins
from fedsim.array_layout import Layout
from fedsim.errors import BadInput
from fedsim.learning.simulate import simulate
from fedsim.learning.transforms import Sending, Transform
from fedsim.settings import TaskSettings
from fedsim.testing.conformance.candidate import Candidate, require, small_data
from fedsim.update import PARAMETERS, Update

SIZE = 211


def _layout() -> Layout:
    """That of a strategy which sends a second array."""
    return Layout({PARAMETERS: (SIZE,), "control": (SIZE,)})


def _update(layout: Layout) -> Update:
    vector = np.random.default_rng(3).normal(size=layout.size).astype(np.float32)
    return Update(base_round=1, num_clients=3, num_examples=40, metrics={}).with_arrays(layout.views(vector))


def _received() -> NDArray[np.float32]:
    return np.random.default_rng(4).normal(size=SIZE).astype(np.float32)


def _sending(transform: Transform) -> Sending:
    """In the sender's second round."""
    kept = transform.kept_layout(_layout())
    return Sending(_received(), 5, kept.views(np.random.default_rng(6).normal(size=kept.size).astype(np.float32)))


def _shapes(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def uploads_have_the_declared_layout(candidate: Candidate) -> None:
    """The arrays after the client side have the shapes and types that `layout` returns, and elements of these types."""
    transform: Transform = candidate.make()
    sent = transform.on_client(_update(_layout()), _sending(transform))
    declared = transform.layout(_layout())
    try:
        declared.check(declared.views(declared.flatten(sent.arrays)))
    except BadInput as error:
        raise AssertionError(str(error)) from error


def senders_keep_what_is_declared(candidate: Candidate) -> None:
    """What a sender is to keep has the shapes of `kept_layout`, and does not stay in memory of the node's."""
    transform: Transform = candidate.make()
    kept = transform.on_client(_update(_layout()), _sending(transform)).client_state
    declared = transform.kept_layout(_layout())
    require(
        _shapes(kept) == dict(declared.shapes),
        f"the client side keeps {_shapes(kept)}, and `kept_layout` declares {dict(declared.shapes)}",
    )


def equal_inputs_give_equal_uploads(candidate: Candidate) -> None:
    """The client side depends on nothing but the update, the seed and what was kept: not on what it did before."""
    first: Transform = candidate.make()
    layout = first.layout(_layout())
    uploads = []
    for transform in (first, first, candidate.make()):
        sent = transform.on_client(_update(_layout()), _sending(transform))
        uploads.append(layout.flatten(sent.arrays).tobytes())
    require(len(set(uploads)) == 1, "the same update gave different uploads; draw with `generator` and `sending.seed`")


def the_server_gets_the_strategys_arrays(candidate: Candidate) -> None:
    """After the server side an update has the arrays that the strategy declares; what arrived is only read."""
    transform: Transform = candidate.make()
    declared = transform.layout(_layout())
    vector = declared.flatten(transform.on_client(_update(_layout()), _sending(transform)).arrays).copy()
    vector.flags.writeable = False
    arrived = transform.on_server(_update(_layout()).with_arrays(declared.views(vector)), _received())
    require(
        _shapes(arrived.arrays) == dict(_layout().shapes),
        f"the server side returns the arrays {_shapes(arrived.arrays)}, the strategy has {dict(_layout().shapes)}",
    )
    for name, array in arrived.arrays.items():
        require(array.dtype == np.float32, f"the server side returns {name} as {array.dtype}; it must be float32")
        blocks = [np.array(array[start : start + 50]) for start in range(0, SIZE, 50)]
        same = np.array_equal(np.concatenate(blocks), np.asarray(array))
        require(same, f"{name}, read block by block, is not {name}: an element must not depend on where a block begins")


def changes_only_what_it_returns(candidate: Candidate) -> None:
    """The client side changes neither the update that it is given nor the received model."""
    transform: Transform = candidate.make()
    update, received = _update(_layout()), _received()
    transform.on_client(update, replace(_sending(transform), received=received))
    require(np.array_equal(received, _received()), "the received model is changed")
    expected = _update(_layout()).arrays
    same = all(np.array_equal(update.arrays[name], array) for name, array in expected.items())
    require(same, "the update is changed; return another one")


def tasks_train(candidate: Candidate) -> None:
    """A whole task with the transform ends, after those that it needs, and again with the same model."""
    settings = TaskSettings(model="logistic", partition="iid", num_clients=6, fraction_train=1.0, num_rounds=2)
    before = [plugins.make(plugins.TRANSFORMS, name, {}) for name in sorted(candidate.plugin.needs_before)]

    def digest() -> str:
        return simulate(settings, small_data(), chunk_clients=2, transforms=[*before, candidate.make()]).digest

    require(digest() == digest(), "the same task, trained twice, gave two different models")


CHECKS = (
    uploads_have_the_declared_layout,
    senders_keep_what_is_declared,
    equal_inputs_give_equal_uploads,
    the_server_gets_the_strategys_arrays,
    changes_only_what_it_returns,
    tasks_train,
)
