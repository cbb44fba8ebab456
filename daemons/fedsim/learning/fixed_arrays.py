"""The tensors of a network that no flat vector holds, where files hold them: what a task may start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from blake3 import blake3
from torch import Tensor

from fedsim.data_schema import some
from fedsim.errors import BadInput
from fedsim.learning.initial_arrays import WantedArrays
from fedsim.learning.networks import TaskNetwork
from fedsim.learning.tensor_roles import SHOWN_TENSORS, TensorRoles, named_tensors

if TYPE_CHECKING:
    from pathlib import Path


def wanted_by(roles: TensorRoles) -> WantedArrays:
    """What a file must hold that a task starts from, and what it may hold besides."""
    return WantedArrays(roles.flat_shapes, frozenset({*roles.built, *roles.aliases}))


COUNTER = "num_batches_tracked"
"""What batch normalisation counts; the only fixed tensor that may differ from what a host builds."""


def frozen_tensors(network: TaskNetwork) -> dict[str, Tensor]:
    """The parameters and whole numbers of a network that no round changes, by name."""
    tensors = named_tensors(network.model)
    return {name: tensors[name] for name in network.roles.fixed if name.rpartition(".")[2] != COUNTER}


def frozen_digest(network: TaskNetwork) -> str:
    """The blake3 of the names, types, shapes and bytes of all frozen tensors, as hex; "" if there are none."""
    found = frozen_tensors(network)
    hasher = blake3()
    for name, tensor in found.items():
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(bytes_of(tensor))
    return hasher.hexdigest() if found else ""


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's numbers, without a copy where it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def check_fixed(network: TaskNetwork, initial: str | Path | Mapping[str, Any]) -> None:
    """Check that frozen tensors in what a task starts from are those that each host builds.

    Raises:
        BadInput: one differs: no round sends it, so the nodes would train with another one.
    """
    frozen = frozen_tensors(network)
    if not frozen:
        return
    if isinstance(initial, Mapping):
        different = [name for name in frozen if name in initial and not _equal(frozen[name], initial[name])]
    else:
        with safetensors.safe_open(initial, framework="pt") as file:
            there = set(file.keys()).intersection(frozen)
            different = [name for name in frozen if name in there and not _equal(frozen[name], file.get_tensor(name))]
    if different:
        source = "initial" if isinstance(initial, Mapping) else str(initial)
        raise BadInput(
            f"{source} has other numbers in {some(different, SHOWN_TENSORS)}, which the model freezes and each host "
            "builds itself: use the same model_seed, let the model's `build` load them, or train them"
        )


def _equal(ours: Tensor, given: Any) -> bool:
    theirs = torch.as_tensor(given)
    return ours.shape == theirs.shape and torch.equal(ours.detach().cpu(), theirs.detach().cpu().to(ours.dtype))
