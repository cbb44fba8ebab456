"""A model's network, which torch computes with, and its flat vector; `tensor_roles` says what is in it.

A network whose input is not the example itself (a random crop in training, the centre in testing) has a method
`prepare`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.data_schema import some
from fedsim.errors import BadInput
from fedsim.learning.examples import FloatArray
from fedsim.learning.models import Model, make_model
from fedsim.learning.objectives import Objective
from fedsim.learning.randomness import generator
from fedsim.learning.tensor_roles import SHOWN_TENSORS, TensorRoles, named_tensors, roles_of
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings

if TYPE_CHECKING:
    from fedsim.learning.strategies import Strategy

TRIED_EXAMPLES = 2


@runtime_checkable
class Prepares(Protocol):
    """A model that makes its input from examples, at random in training."""

    def prepare(self, features: Tensor, rng: np.random.Generator | None) -> Tensor:
        """From a batch of examples to the model's input; `rng` is None when testing."""


def he_initialised(model: nn.Module) -> nn.Module:
    """The model with weights after He et al. 2015 (uniform, variance 2 / inputs), biases 0: what rectified layers need.

    torch's own default has a sixth of that variance: the deeper signal fades, and a 2NN on MNIST is some rounds late.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def build_model(spec: ModelSpec, model: Model | None = None, *, seed: int = 0) -> nn.Module:
    """The network of a model, initialised from the seed.

    Every model has its own way of being initialised, which draws from torch's global stream: that stream is set from
    the seed, and put back afterwards.

    Args:
        spec: what the network is for.
        model: instead of the one that the specification names.
        seed: the task's.

    Raises:
        BadInput: there is no such model, the shape does not fit it, or it is none that can be averaged.
    """
    model = model or make_model(spec)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(generator(seed, "initial model").integers(2**63)))
        built = model.build(spec.feature_shape, spec.num_classes)
    roles_of(built, name=spec.name)
    return built


@dataclass(frozen=True)
class TaskNetwork:
    """The network of a task on one host, and the roles of its tensors there."""

    model: nn.Module
    roles: TensorRoles


def task_network(
    spec: ModelSpec, settings: TaskSettings, strategy: Strategy | None = None, model: Model | None = None
) -> TaskNetwork:
    """The network of a task, of which the flat vector is still to be loaded.

    What the flat vector does not hold is what `build` makes with the task's seed, the same on every host.

    Raises:
        BadInput: as `build_model` and `roles_of`.
    """
    built = build_model(spec, model)
    roles = roles_of(built, settings.statistics, strategy, spec.name)
    if roles.built and settings.seed_of_model:
        ours, theirs = (named_tensors(one) for one in (built, build_model(spec, model, seed=settings.seed_of_model)))
        with torch.no_grad():
            for name in roles.built:
                ours[name].copy_(theirs[name])
    return TaskNetwork(built, roles)


def task_roles(
    spec: ModelSpec, settings: TaskSettings, strategy: Strategy | None = None, model: Model | None = None
) -> TensorRoles:
    """The roles of the tensors of a task's network, without memory for it where its `build` needs only shapes.

    Raises:
        BadInput: as `task_network`.
    """
    described = network_on_meta(spec, model)
    return roles_of(
        build_model(spec, model) if described is None else described, settings.statistics, strategy, spec.name
    )


def check_training(
    model: nn.Module, spec: ModelSpec, device: torch.device | None = None, objective: Objective | None = None
) -> None:
    """Try whether the model gives outputs that every parameter has a part in: once, before a task trains for days.

    Their shape is the objective's; without one they are logits [examples, classes]. torch's random stream and the
    network's buffers are put back afterwards.

    Raises:
        BadInput: it does not.
    """
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), _buffers_put_back(model):
        examples = torch.zeros(TRIED_EXAMPLES, *spec.feature_shape, device=device)
        inputs = model.prepare(examples, generator(0, "trial")) if isinstance(model, Prepares) else examples
        outputs: object = model.train()(inputs.to(input_type(model)))
        shape: tuple[int, ...] = (spec.num_classes,)
        if objective is not None:
            shape = objective.output_shape(spec.feature_shape, spec.num_classes)
        wanted = (TRIED_EXAMPLES, *shape)
        if not isinstance(outputs, Tensor) or outputs.shape != wanted:
            what = list(outputs.shape) if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
            raise BadInput(
                f"model {spec.name} must give {_wanted_outputs(shape)}: for {TRIED_EXAMPLES} examples and "
                f"{spec.num_classes} classes {list(wanted)}; it gives {what}"
            )
        parameters = {key: value for key, value in model.named_parameters() if value.requires_grad}
        gradients: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if outputs.requires_grad:
            gradients = torch.autograd.grad(outputs.sum(), list(parameters.values()), allow_unused=True)
    unused = [key for key, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    if unused:
        raise BadInput(
            f"model {spec.name}: the parameter {some(unused, SHOWN_TENSORS)} has no part in what the model gives and "
            "cannot be trained; take it out, or use it"
        )


def _wanted_outputs(shape: tuple[int, ...]) -> str:
    return "logits [examples, classes]" if len(shape) == 1 else "the outputs that the task's objective takes"


@contextmanager
def _buffers_put_back(model: nn.Module) -> Iterator[None]:
    """Put back what a network that is tried writes into its persistent buffers."""
    before = {name: tensor.clone() for name, tensor in named_tensors(model).items() if not _is_parameter(tensor)}
    yield
    with torch.no_grad():
        for name, tensor in before.items():
            model.get_buffer(name).copy_(tensor)


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def input_type(model: nn.Module) -> torch.dtype:
    """The type in which a network takes examples: that of its parameters, float32 if they have several."""
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return types.pop() if len(types) == 1 else torch.float32


def parameter_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors in a model's flat vector, in its order; nothing of it is personal.

    Raises:
        BadInput: there is no such model, or the shape does not fit it.
    """
    described = network_on_meta(spec)
    return shapes_of(build_model(spec) if described is None else described)


def count_parameters(spec: ModelSpec) -> int | None:
    """The number of a model's parameters, also of frozen ones, counted without making it, in no memory.

    Returns:
        None for a model whose `build` needs numbers, not only shapes.

    Raises:
        BadInput: there is no such model, or the shape does not fit it.
    """
    described = network_on_meta(spec)
    return None if described is None else sum(parameter.numel() for parameter in described.parameters())


def network_on_meta(spec: ModelSpec, model: Model | None = None) -> nn.Module | None:
    """A model's network without memory for its numbers; None for a model whose `build` needs them."""
    try:
        with torch.device("meta"):
            return (model or make_model(spec)).build(spec.feature_shape, spec.num_classes)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None


def shapes_of(model: nn.Module, roles: TensorRoles | None = None) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors in a network's flat vector, in its order."""
    return (roles or roles_of(model)).flat_shapes


def check_size(spec: ModelSpec, most: int | None, where: str) -> None:
    """Refuse a model of more than `most` parameters before it is made; `where` names the limit.

    Raises:
        BadInput: it has too many, or the shape does not fit it.
    """
    if most is None:
        return
    number = count_parameters(spec)
    if number is not None and number > most:
        raise BadInput(f"the model {spec.name} has {number:,} parameters here, {where} allows {most:,}")


def initial_vector(
    spec: ModelSpec,
    seed: int,
    model: Model | None = None,
    objective: Objective | None = None,
    roles: TensorRoles | None = None,
) -> FloatArray:
    """The flat vector with which a task begins, float32 [P]; equal arguments, equal bytes.

    The objective decides the shape of the outputs that the model must give, see `check_training`, and `roles` which
    tensors are in the vector; None: nothing is personal.

    Raises:
        BadInput: as `build_model` and `check_training`.
    """
    built = build_model(spec, model, seed=seed)
    vector: FloatArray = share_vector(built, roles).numpy()
    check_training(built, spec, objective=objective)
    return vector


def num_parameters(model: nn.Module, roles: TensorRoles | None = None) -> int:
    """P, the length of the model's flat vector."""
    return (roles or roles_of(model)).flat_size


def vector_of(model: nn.Module, out: FloatArray | None = None, roles: TensorRoles | None = None) -> FloatArray:
    """A model's flat vector, float32 [P], into `out` if it is given."""
    if out is None:
        out = np.empty(num_parameters(model, roles), np.float32)
    flat = torch.from_numpy(out)
    with torch.no_grad():
        for tensor, part in zip(_flat_tensors(model, roles), parts_of(model, flat, roles), strict=True):
            part.copy_(tensor)
    return out


def check_length(model: nn.Module, vector: FloatArray, roles: TensorRoles | None = None) -> None:
    """Raise `BadInput` unless the vector is as long as the model's."""
    size = num_parameters(model, roles)
    if vector.shape != (size,):
        raise BadInput(f"the model has {size} parameters, the vector {vector.size}: they belong to different models")


def load_vector(model: nn.Module, vector: FloatArray, roles: TensorRoles | None = None) -> None:
    """Set the tensors of a model's flat vector from float32 [P].

    Raises:
        BadInput: the vector has another length than the model's.
    """
    check_length(model, vector, roles)
    with torch.no_grad():
        for tensor, part in zip(_flat_tensors(model, roles), parts_of(model, as_tensor(vector), roles), strict=True):
            tensor.copy_(part)


def point_to(model: nn.Module, vector: FloatArray, roles: TensorRoles | None = None) -> None:
    """Let a model's parameters be views of float32 [P] on the CPU, which may be a mapped file: only to be read.

    What the parameters were before is freed. Buffers, which a network may write to, and parameters of another type are
    copied.

    Raises:
        BadInput: the vector has another length than the model's.
    """
    check_length(model, vector, roles)
    with torch.no_grad():
        for tensor, part in zip(_flat_tensors(model, roles), parts_of(model, as_tensor(vector), roles), strict=True):
            if _is_parameter(tensor) and tensor.dtype == part.dtype:
                tensor.data = part
            else:
                tensor.copy_(part)


def share_vector(model: nn.Module, roles: TensorRoles | None = None) -> Tensor:
    """Move a model's parameters into its flat vector, float32 [P], of which they are views from then on.

    Reading or setting all parameters is then one copy. Parameters of another type than float32, and buffers, are copied
    and stay where they are.
    """
    flat = torch.empty(num_parameters(model, roles), device=next(model.parameters()).device)
    share_parts(_flat_tensors(model, roles), parts_of(model, flat, roles))
    return flat


def share_parts(tensors: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
    """Copy tensors into the parts of a vector, and let those that are float32 parameters be views of it."""
    for tensor, part in zip(tensors, parts, strict=True):
        part.copy_(tensor.detach())
        if _is_parameter(tensor) and tensor.dtype == part.dtype:
            tensor.data = part  # which frees what it was: no more than one parameter is in memory twice


def as_tensor(array: FloatArray) -> Tensor:
    """An array as a tensor on the CPU, without a copy. One that may only be read must not be written to."""
    with warnings.catch_warnings():  # of exactly that, for arrays such as a read-only memory map
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def parts_of(model: nn.Module, flat: Tensor, roles: TensorRoles | None = None) -> list[Tensor]:
    """A vector as long as the model's, as views of one tensor for each of the model's tensors in it."""
    return split_vector(flat, shapes_of(model, roles))


def split_vector(flat: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
    """A vector as views of tensors with these shapes."""
    parts = torch.split(flat, [prod(shape) for shape in shapes.values()])
    return [part.view(shape) for part, shape in zip(parts, shapes.values(), strict=True)]


def _flat_tensors(model: nn.Module, roles: TensorRoles | None) -> list[Tensor]:
    tensors = named_tensors(model)
    return [tensors[name] for name in (roles or roles_of(model)).flat]
