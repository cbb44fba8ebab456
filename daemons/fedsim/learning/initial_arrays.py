"""The named arrays of a model that was trained elsewhere, as the first model of a task. Imports no torch.

A file is safetensors (https://huggingface.co/docs/safetensors): a checkpoint of fedsim, or any other with float32
arrays whose names and shapes are those of the model's flat vector.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors

from fedsim.array_layout import Layout
from fedsim.data_schema import some
from fedsim.errors import BadInput
from fedsim.learning.examples import FloatArray
from fedsim.messages import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

FLOAT32 = "F32"
LISTED = 3
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class WantedArrays:
    """What a file must hold: the shapes of the arrays of the flat vector, in its order. It may also hold `others`."""

    shapes: Shapes
    others: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ArraysInFile:
    """What a file of arrays says of itself: the shape and type of each, and the model of a checkpoint of fedsim."""

    shapes: Shapes
    types: Mapping[str, str]
    model_spec: ModelSpec | None


def describe_file(path: str | Path) -> ArraysInFile:
    """Read the header of a safetensors file.

    Raises:
        BadInput: it is none, or it is damaged.
        FileNotFoundError: there is no such file.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return ArraysInFile(
                {name: tuple(part.get_shape()) for name, part in slices.items()},
                {name: str(part.get_dtype()) for name, part in slices.items()},
                _model_of(file.metadata() or {}),
            )
    except FileNotFoundError:
        raise
    except (OSError, safetensors.SafetensorError) as error:
        raise BadInput(f"{path} is not a file in the format safetensors: {error}") from error


def _model_of(metadata: Mapping[str, str]) -> ModelSpec | None:
    """The model that a checkpoint of fedsim names; None for other files, and for those of versions that differ."""
    try:
        return ModelSpec.model_validate(json.loads(metadata["fedsim"]))
    except (KeyError, ValueError):
        return None


def misfit(found: Shapes, types: Mapping[str, str], wanted: WantedArrays) -> str | None:
    """Why arrays are not those of a model, as the rest of a sentence; None if they are.

    Args:
        found: the shapes of the arrays.
        types: their types in the words of safetensors, such as `F32`.
        wanted: the model's.
    """
    shapes = wanted.shapes
    if lacking := [name for name in shapes if name not in found]:
        return f"lacks the parameters {some(lacking, LISTED)} of the model"
    if others := [name for name in found if name not in shapes and name not in wanted.others]:
        return f"has arrays that the model does not have: {some(others, LISTED)}"
    for name, shape in shapes.items():
        if tuple(found[name]) != tuple(shape):
            return f"has {name} with the shape {list(found[name])}; the model needs {list(shape)}"
    if other := [f"{name} is {types[name]}" for name in shapes if types[name] != FLOAT32]:
        return f"must have float32 arrays (F32), but {some(other, LISTED)}"
    return None


def fill_initial(
    vector: FloatArray, wanted: WantedArrays, initial: str | Path | Mapping[str, Any] | None, setting: str
) -> FloatArray:
    """Overwrite a model's flat vector with what training starts from, and return it; None: the vector as it is.

    Raises:
        BadInput: the arrays do not fit; or there are none, and the setting `initial` names some.
    """
    if setting and initial is None:
        raise BadInput(f"the settings start from {setting}: give its file, or its arrays, as `initial`")
    if isinstance(initial, Mapping):
        fill_from_arrays(vector, wanted, initial)
    elif initial is not None:
        fill_from_file(vector, wanted, initial)
    return vector


def fill_from_file(vector: FloatArray, wanted: WantedArrays, path: str | Path) -> None:
    """Overwrite a model's flat vector, float32 [P], with the arrays of a file, one after another.

    Args:
        vector: of the model, written in place.
        wanted: the arrays of the vector.
        path: of the safetensors file.

    Raises:
        BadInput: the arrays do not fit, or are not finite.
        FileNotFoundError: there is no such file.
    """
    arrays = describe_file(path)
    if (problem := misfit(arrays.shapes, arrays.types, wanted)) is not None:
        raise BadInput(f"{path} {problem}")
    with safetensors.safe_open(path, framework="numpy") as file:
        _fill(vector, wanted.shapes, ((name, file.get_tensor(name)) for name in wanted.shapes), str(path))


def fill_from_arrays(vector: FloatArray, wanted: WantedArrays, arrays: Mapping[str, Any]) -> None:
    """Overwrite a model's flat vector with arrays by their names, such as a `state_dict`; see `fill_from_file`."""
    given = {name: _as_array(name, array) for name, array in arrays.items() if name not in wanted.others}
    types = {name: FLOAT32 if array.dtype == np.float32 else str(array.dtype) for name, array in given.items()}
    if (problem := misfit({name: array.shape for name, array in given.items()}, types, wanted)) is not None:
        raise BadInput(f"initial {problem}")
    _fill(vector, wanted.shapes, ((name, given[name]) for name in wanted.shapes), "initial")


def _as_array(name: str, given: Any) -> Any:
    try:
        return np.asarray(given)
    except TypeError as error:  # such as a tensor of bfloat16, which numpy lacks
        raise BadInput(f"initial has {name} in a type that is not float32: use `.float()`") from error


def _fill(vector: FloatArray, wanted: Shapes, arrays: Iterable[tuple[str, Any]], source: str) -> None:
    views = Layout(wanted).views(vector)
    for name, array in arrays:
        if not np.isfinite(array).all():
            raise BadInput(f"{source} has NaN or Inf in {name}: a task cannot start from it")
        views[name][...] = array
