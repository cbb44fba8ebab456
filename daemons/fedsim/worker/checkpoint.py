"""Checkpoints: safetensors files with a JSON file that records their origin."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import safetensors
import torch
from blake3 import blake3
from numpy.typing import NDArray

from fedsim.array_layout import Layout
from fedsim.data_schema import DataSchema
from fedsim.errors import BadInput
from fedsim.learning.fixed_arrays import frozen_digest
from fedsim.learning.initial_arrays import FLOAT32
from fedsim.learning.networks import build_model, task_network, task_roles
from fedsim.learning.strategies import make_strategy
from fedsim.learning.tensor_roles import named_tensors, roles_of
from fedsim.legacy_settings import model_spec_from_0_1
from fedsim.messages import ModelSpec
from fedsim.spool.durable import replacing, write_all, write_json
from fedsim.spool.npy import BLOCK_BYTES, open_vector
from fedsim.worker.jobs import SaveCheckpoint

# The web runs as another user and serves checkpoints: it can read them through the folder's group.
FOR_THE_GROUP = 0o640
HEADER_ALIGNMENT = 8
CODES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
ORDER = tuple(CODES.values())
"""The last ones come first in a file, as the library writes it."""


def save_checkpoint(job: SaveCheckpoint) -> tuple[str, int]:
    """Write the checkpoint and its JSON; returns the file's blake3 digest and its size in bytes."""
    strategy = make_strategy(job.settings)
    roles = task_roles(job.model_spec, job.settings, strategy)
    layout = Layout(roles.flat_shapes)
    tensors: dict[str, NDArray[Any]] = dict(layout.views(open_vector(job.model, layout.size)))
    types: dict[str, str] = {}
    frozen: dict[str, str] = {}
    if roles.built:  # as each host builds them; of personal tensors what clients begin with
        network = task_network(job.model_spec, job.settings, strategy)
        built = named_tensors(network.model)
        if digest_of_frozen := frozen_digest(network):
            frozen = {"frozen": digest_of_frozen}
        types = {name: _code(built[name]) for name in roles.built}
        tensors |= {name: _bytes(built[name]) for name in roles.built}
    for name, first in roles.aliases.items():
        tensors[name] = tensors[first]
        if first in types:
            types[name] = types[first]
    job.out.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    # One key only: safetensors writes several in any order, and equal models should be equal files.
    digest, size = write_safetensors(job.out, tensors, {"fedsim": job.model_spec.model_dump_json()}, types)
    write_json(job.out.with_suffix(".json"), {**job.about, **frozen, "digest": digest, "size": size}, FOR_THE_GROUP)
    return digest, size


def _code(tensor: torch.Tensor) -> str:
    """The type of a tensor in the words of safetensors."""
    if tensor.dtype not in CODES:
        raise BadInput(f"a tensor of {tensor.dtype} cannot be saved in a checkpoint: convert it to another type")
    return CODES[tensor.dtype]


def _bytes(tensor: torch.Tensor) -> NDArray[Any]:
    """The bytes of a tensor's numbers, uint8 [*shape, bytes of a number]: numpy lacks some types."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return flat.reshape(*tensor.shape, tensor.element_size())


def write_safetensors(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    description: Mapping[str, str],
    types: Mapping[str, str] = MappingProxyType({}),
) -> tuple[str, int]:
    """Durably write arrays as the library would, to the byte, but from mapped files and in blocks.

    The library itself writes next to the file, under a name that nothing clears away after a crash, and does not give a
    digest. The format: https://huggingface.co/docs/safetensors, a JSON header after its length, then the numbers, those
    of longer types first.

    Args:
        path: of the file.
        tensors: float32, or the bytes of numbers of another type, [*shape, bytes of a number].
        description: the file's metadata.
        types: of those that are bytes, in the words of safetensors.

    Returns:
        The file's blake3 digest and its size in bytes.
    """
    header: dict[str, object] = {"__metadata__": dict(description)}
    end = 0
    order = sorted(tensors, key=lambda name: (-ORDER.index(types.get(name, FLOAT32)), name))
    for name in order:
        start, end = end, end + tensors[name].nbytes
        shape = tensors[name].shape[:-1] if name in types else tensors[name].shape
        header[name] = {"dtype": types.get(name, FLOAT32), "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    hasher, size = blake3(), 0
    with replacing(path, FOR_THE_GROUP) as file:
        numbers = (np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data for name in order)
        for part in (memoryview(struct.pack("<Q", len(text)) + text), *numbers):
            for start in range(0, len(part), BLOCK_BYTES):
                block = part[start : start + BLOCK_BYTES]
                hasher.update(block)
                write_all(file, block)
            size += len(part)
    return hasher.hexdigest(), size


@dataclass(frozen=True)
class TaskOfCheckpoint:
    """What the JSON next to a checkpoint says of its task: columns and labels, and the objective with its options."""

    data_schema: DataSchema | None = None
    objective: str | None = None
    objective_options: dict[str, Any] = field(default_factory=dict)


def task_of(path: Path) -> TaskOfCheckpoint:
    """The task of a checkpoint, as far as the JSON next to it says it; raises `BadInput` if that is invalid."""
    try:
        about = json.loads(path.with_suffix(".json").read_bytes())
        schema, settings = about.get("data_schema"), about.get("settings") or {}
        return TaskOfCheckpoint(
            None if schema is None else DataSchema.model_validate(schema),
            settings.get("objective"),
            dict(settings.get("objective_options") or {}),
        )
    except FileNotFoundError:
        return TaskOfCheckpoint()
    except (ValueError, AttributeError, TypeError) as error:
        raise BadInput(f"{path.with_suffix('.json')} does not describe a checkpoint of fedsim: {error}") from error


def load_checkpoint(path: Path) -> tuple[torch.nn.Module, ModelSpec]:
    """Load the model of a checkpoint as a network, and its specification.

    Raises:
        BadInput: if `path` is not a checkpoint of fedsim.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["fedsim"])
            spec = ModelSpec.model_validate(model_spec_from_0_1(about))
            model = build_model(spec)
            tensors, roles = named_tensors(model), roles_of(model)
            expected = {name: list(tensor.shape) for name, tensor in tensors.items()}
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a dict
            # Files of earlier versions hold the parameters alone.
            lacking = [name for name in roles.flat if name not in found]
            if lacking or not found.items() <= expected.items():
                raise BadInput(f"{path} does not contain the parameters of the model {spec.name}: {found}")
            with torch.no_grad():
                for name in found:
                    tensors[name].copy_(file.get_tensor(name))
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is not a checkpoint of fedsim: {error}") from error
    return model, spec
