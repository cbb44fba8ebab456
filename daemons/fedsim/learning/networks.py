"""A model's network, which torch computes with, as one flat vector of parameters.

A network whose input is not the example itself (a random crop in training, the centre in testing) has a method
`prepare`.
"""

from __future__ import annotations

import warnings
from math import prod
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.data_schema import some
from fedsim.errors import BadInput
from fedsim.learning.examples import FloatArray
from fedsim.learning.models import Model, make_model
from fedsim.learning.objectives import Objective
from fedsim.learning.randomness import generator
from fedsim.messages import ModelSpec

TRIED_EXAMPLES = 2
LISTED = 3


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
    _check_parameters(built, spec.name)
    return built


def _check_parameters(model: object, name: str) -> None:
    """What makes a model one flat float32 vector, all of which is trained."""
    if not isinstance(model, nn.Module):
        raise BadInput(f"model {name}: `build` returns a {type(model).__name__}, not a torch.nn.Module")
    parameters = dict(model.named_parameters())
    if not parameters:
        raise BadInput(f"model {name} has no parameters: there is nothing to train")
    other = [f"{key} is {value.dtype}" for key, value in parameters.items() if value.dtype != torch.float32]
    if other:
        raise BadInput(
            f"model {name}: the parameter {some(other, LISTED)}; all must be torch.float32: use `model.float()`"
        )
    frozen = [key for key, value in parameters.items() if not value.requires_grad]
    if frozen:
        raise BadInput(
            f"model {name}: the parameter {some(frozen, LISTED)} is frozen (requires_grad=False), and every parameter "
            "is trained and averaged; make what is fixed a buffer with persistent=False"
        )
    kept = {key for key, value in model.state_dict().items() if isinstance(value, Tensor) and value.is_floating_point()}
    statistics = sorted(kept - {key for key, _ in model.named_parameters(remove_duplicate=False)})
    if statistics:
        raise BadInput(
            f"model {name} keeps {some(statistics, LISTED)} besides its parameters, and federated rounds would lose "
            "them; use GroupNorm, or BatchNorm with track_running_stats=False; what never changes can be a buffer with "
            "persistent=False"
        )


def check_training(
    model: nn.Module, spec: ModelSpec, device: torch.device | None = None, objective: Objective | None = None
) -> None:
    """Try whether the model gives outputs that every parameter has a part in: once, before a task trains for days.

    Their shape is the objective's; without one they are logits [examples, classes]. torch's random stream is put back
    afterwards.

    Raises:
        BadInput: it does not.
    """
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        examples = torch.zeros(TRIED_EXAMPLES, *spec.feature_shape, device=device)
        inputs = model.prepare(examples, generator(0, "trial")) if isinstance(model, Prepares) else examples
        outputs: object = model.train()(inputs)
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
        parameters = dict(model.named_parameters())
        gradients: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if outputs.requires_grad:
            gradients = torch.autograd.grad(outputs.sum(), list(parameters.values()), allow_unused=True)
    unused = [key for key, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    if unused:
        raise BadInput(
            f"model {spec.name}: the parameter {some(unused, LISTED)} has no part in what the model gives and cannot "
            "be trained; take it out, or use it"
        )


def _wanted_outputs(shape: tuple[int, ...]) -> str:
    return "logits [examples, classes]" if len(shape) == 1 else "the outputs that the task's objective takes"


def parameter_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a model's parameters, in the order of its flat vector.

    Raises:
        BadInput: there is no such model, or the shape does not fit it.
    """
    return shapes_on_meta(spec) or shapes_of(build_model(spec))


def count_parameters(spec: ModelSpec) -> int | None:
    """The number of a model's parameters, counted without making it, in no memory.

    Returns:
        None for a model whose `build` needs numbers, not only shapes.

    Raises:
        BadInput: there is no such model, or the shape does not fit it.
    """
    shapes = shapes_on_meta(spec)
    return sum(map(prod, shapes.values())) if shapes else None


def shapes_on_meta(spec: ModelSpec) -> dict[str, tuple[int, ...]] | None:
    """`parameter_shapes` without memory for the parameters; None for a model whose `build` needs their numbers."""
    try:
        with torch.device("meta"):
            return shapes_of(make_model(spec).build(spec.feature_shape, spec.num_classes))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a network's parameters, in the order of its flat vector."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


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
    spec: ModelSpec, seed: int, model: Model | None = None, objective: Objective | None = None
) -> FloatArray:
    """The parameters with which a task begins, float32 [P]; equal arguments, equal bytes.

    The objective decides the shape of the outputs that the model must give, see `check_training`.

    Raises:
        BadInput: as `build_model` and `check_training`.
    """
    built = build_model(spec, model, seed=seed)
    vector: FloatArray = share_vector(built).numpy()
    check_training(built, spec, objective=objective)
    return vector


def num_parameters(model: nn.Module) -> int:
    """P, the length of the model's flat vector."""
    return sum(parameter.numel() for parameter in model.parameters())


def vector_of(model: nn.Module, out: FloatArray | None = None) -> FloatArray:
    """A model's parameters one after another as float32 [P], into `out` if it is given."""
    if out is None:
        out = np.empty(num_parameters(model), np.float32)
    start = 0
    for parameter in model.parameters():
        end = start + parameter.numel()
        out[start:end] = parameter.detach().reshape(-1).cpu().numpy()
        start = end
    return out


def check_length(model: nn.Module, vector: FloatArray) -> None:
    """Raise `BadInput` unless the vector is as long as the model."""
    size = num_parameters(model)
    if vector.shape != (size,):
        raise BadInput(f"the model has {size} parameters, the vector {vector.size}: they belong to different models")


def load_vector(model: nn.Module, vector: FloatArray) -> None:
    """Set a model's parameters from float32 [P].

    Raises:
        BadInput: the vector has another length than the model.
    """
    check_length(model, vector)
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), parts_of(model, as_tensor(vector)), strict=True):
            parameter.copy_(part)


def point_to(model: nn.Module, vector: FloatArray) -> None:
    """Let a model's parameters be views of float32 [P] on the CPU, which may be a mapped file: only to be read.

    What the parameters were before is freed.

    Raises:
        BadInput: the vector has another length than the model.
    """
    check_length(model, vector)
    for parameter, part in zip(model.parameters(), parts_of(model, as_tensor(vector)), strict=True):
        parameter.data = part


def share_vector(model: nn.Module) -> Tensor:
    """Move a model's parameters into one flat tensor, float32 [P], of which they are views from then on.

    Reading or setting all parameters is then one copy.
    """
    flat = torch.empty(num_parameters(model), device=next(model.parameters()).device)
    for parameter, part in zip(model.parameters(), parts_of(model, flat), strict=True):
        part.copy_(parameter.detach())
        parameter.data = part  # which frees what it was: no more than one parameter is in memory twice
    return flat


def as_tensor(array: FloatArray) -> Tensor:
    """An array as a tensor on the CPU, without a copy. One that may only be read must not be written to."""
    with warnings.catch_warnings():  # of exactly that, for arrays such as a read-only memory map
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def parts_of(model: nn.Module, flat: Tensor) -> list[Tensor]:
    """A vector as long as the model, as views of one tensor for each parameter."""
    parameters = list(model.parameters())
    parts = torch.split(flat, [parameter.numel() for parameter in parameters])
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]
