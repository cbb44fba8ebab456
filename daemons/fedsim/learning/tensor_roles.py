"""The roles of a model's tensors: what a round does with each of them, decided here and nowhere else.

The names are those of the network's `state_dict`. The flat vector, which is sent, averaged and hashed, holds the shared
trained parameters and after them the shared statistics. What stays with each client is its personal vector. The rest is
fixed: each host has it as `build` makes it, and no file of a round holds it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedsim.data_schema import some
from fedsim.errors import BadInput
from fedsim.learning.aggregate import SharedStatistics

if TYPE_CHECKING:
    from fedsim.learning.strategies import Strategy

StatisticsRule = Literal["average", "local", "frozen"]
"""What happens with float buffers, such as the running mean and variance of BatchNorm."""
TRAINABLE_TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types of which float32 holds each number."""
SHOWN_TENSORS = 3


@dataclass(frozen=True)
class TensorRoles:
    """The tensors of a network by their roles, each in the order of the network.

    Attributes:
        trained: parameters of the flat vector. A parameter with several names is here once, by its first.
        statistics: float buffers of the flat vector, after the parameters.
        personal: parameters that are trained and stay with each client.
        personal_statistics: float buffers that stay with each client.
        fixed: frozen parameters, and buffers that are not floats.
        aliases: each further name of a tensor that has several, and its first one.
        shapes: of all of these.
        frozen_statistics: whether training leaves `statistics` as they are.
        whole: whether each client also keeps a flat vector of its own.
    """

    trained: tuple[str, ...]
    statistics: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()
    personal_statistics: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    frozen_statistics: bool = False
    whole: bool = False

    @property
    def flat(self) -> tuple[str, ...]:
        """The tensors of the flat vector, in its order."""
        return self.trained + self.statistics

    @property
    def own(self) -> tuple[str, ...]:
        """The tensors of a client's personal vector, in its order."""
        return self.personal + self.personal_statistics

    @property
    def built(self) -> tuple[str, ...]:
        """The tensors that no vector of the server holds: each host makes them from the task's seed."""
        return self.own + self.fixed

    @property
    def plain(self) -> bool:
        """Whether all tensors are trained parameters of the flat vector."""
        return not (self.statistics or self.built or self.aliases)

    @property
    def flat_shapes(self) -> dict[str, tuple[int, ...]]:
        """The names and shapes of the tensors of the flat vector, in its order."""
        return {name: self.shapes[name] for name in self.flat}

    @property
    def flat_size(self) -> int:
        """P, the length of the flat vector."""
        return self._size(self.flat)

    @property
    def own_size(self) -> int:
        """The length of the tensors that stay with each client."""
        return self._size(self.own)

    @property
    def kept_size(self) -> int:
        """Q, the length of a client's personal vector: of the tensors of its own, or of a whole model."""
        return self.flat_size if self.whole else self.own_size

    @property
    def shared_statistics(self) -> SharedStatistics:
        """The statistics in the flat vector, as the aggregation knows them."""
        return SharedStatistics(self._size(self.statistics), self.frozen_statistics)

    def _size(self, names: Collection[str]) -> int:
        return sum(prod(self.shapes[name]) for name in names)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and persistent buffers of a network by all their names, parameters first."""
    parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    persistent = set(model.state_dict(keep_vars=True))
    buffers = model.named_buffers(remove_duplicate=False)
    return parameters | {name: buffer for name, buffer in buffers if name in persistent}


def roles_of(
    model: nn.Module,
    statistics: StatisticsRule = "average",
    strategy: Strategy | None = None,
    name: str = "of the task",
) -> TensorRoles:
    """The roles of a network's tensors in a task.

    Args:
        model: the network; it may be on the device meta.
        statistics: the task's rule for float buffers.
        strategy: of the task; it says which tensors are personal. None: none are.
        name: what messages call the model.

    Raises:
        BadInput: nothing of the network can be trained, a tensor has a type that cannot be averaged, or the rule or the
            strategy does not apply to this network.
    """
    if not isinstance(model, nn.Module):
        raise BadInput(f"model {name}: `build` returns a {type(model).__name__}, not a torch.nn.Module")
    tensors, aliases = _once(named_tensors(model))
    parameters = {key: value for key, value in tensors.items() if isinstance(value, nn.Parameter)}
    trained = [key for key, value in parameters.items() if value.requires_grad]
    floats = [key for key, value in tensors.items() if key not in parameters and value.is_floating_point()]
    if not parameters:
        raise BadInput(f"model {name} has no parameters: there is nothing to train")
    if not trained:
        raise BadInput(f"model {name}: all its parameters are frozen (requires_grad=False): there is nothing to train")
    _check_types({key: tensors[key] for key in trained + floats}, name)
    chosen = frozenset[str]() if strategy is None else strategy.personal_tensors(model)
    if unknown := sorted(chosen - {*trained, *floats, *aliases}):
        raise BadInput(f"model {name} has no tensor {some(unknown, SHOWN_TENSORS)} that can be personal")
    chosen = frozenset(aliases.get(key, key) for key in chosen)
    personal = tuple(key for key in trained if key in chosen)
    local = {key for key in floats if key in chosen or statistics == "local"}
    if statistics != "average" and not floats:
        raise BadInput(f"model {name} keeps no statistics: leave the setting statistics at average, not {statistics}")
    if statistics == "frozen" and chosen.intersection(floats):
        raise BadInput(
            f"model {name}: its strategy keeps statistics at each client, which are not frozen: leave the setting "
            "statistics at average"
        )
    whole = strategy is not None and strategy.personal_model
    if whole and local:
        raise BadInput(
            f"model {name}: its strategy keeps a whole model at each client, with its statistics: leave the setting "
            "statistics at average"
        )
    if len(personal) == len(trained):
        raise BadInput(f"model {name}: all trained parameters are personal, and nothing would be averaged: name fewer")
    return TensorRoles(
        trained=tuple(key for key in trained if key not in chosen),
        statistics=tuple(key for key in floats if key not in local),
        personal=personal,
        personal_statistics=tuple(key for key in floats if key in local),
        fixed=tuple(key for key in tensors if key not in trained and key not in floats),
        aliases=aliases,
        shapes={key: tuple(value.shape) for key, value in tensors.items()},
        frozen_statistics=statistics == "frozen",
        whole=whole,
    )


def _once(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor by its first name, and the further names."""
    first: dict[int, str] = {}
    aliases = {name: kept for name, tensor in tensors.items() if (kept := first.setdefault(id(tensor), name)) != name}
    return {name: tensor for name, tensor in tensors.items() if name not in aliases}, aliases


def _check_types(tensors: Mapping[str, Tensor], name: str) -> None:
    if lazy := [key for key, value in tensors.items() if is_lazy(value)]:
        raise BadInput(
            f"model {name}: {some(lazy, SHOWN_TENSORS)} has no shape yet (a lazy layer): give the layer "
            "its number of inputs"
        )
    other = [f"{key} is {value.dtype}" for key, value in tensors.items() if value.dtype not in TRAINABLE_TYPES]
    if other:
        raise BadInput(
            f"model {name}: {some(other, SHOWN_TENSORS)}; what is trained or averaged must be torch.float32, float16 "
            "or bfloat16: use `model.float()`, or make what never changes a buffer with "
            "persistent=False"
        )


def averaged_tensors(model: nn.Module) -> list[str]:
    """The names of what is trained or a statistic, in the order of the network's layers."""
    tensors, _ = _once(named_tensors(model))
    named = {name for name, tensor in tensors.items() if _is_averaged(tensor)}
    order = [f"{prefix}.{own}" if prefix else own for prefix, module in model.named_modules() for own in _own(module)]
    return [name for name in dict.fromkeys(order) if name in named]


def _own(module: nn.Module) -> list[str]:
    """The names of a module's own tensors, without those of the modules in it."""
    return [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]


def _is_averaged(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))


def normalisation_tensors(model: nn.Module) -> frozenset[str]:
    """The names of all parameters and float buffers of batch normalisation layers."""
    layers = (nn.modules.batchnorm._BatchNorm,)  # noqa: SLF001 - the base of BatchNorm1d to 3d and SyncBatchNorm
    found = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, layers)
        for name, tensor in named_tensors(module).items()
        if _is_averaged(tensor)
    }
    return frozenset(found)
