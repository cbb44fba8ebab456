"""Checkpoints: safetensors files with a JSON file that records their origin."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import torch
from blake3 import blake3

from fedsim.array_layout import Layout
from fedsim.data_schema import DataSchema
from fedsim.errors import BadInput
from fedsim.learning.networks import build_model, parameter_shapes
from fedsim.legacy_settings import model_spec_from_0_1
from fedsim.messages import ModelSpec
from fedsim.spool.durable import replacing, write_all, write_json
from fedsim.spool.npy import BLOCK_BYTES, open_vector
from fedsim.update import Arrays
from fedsim.worker.jobs import SaveCheckpoint

# The web runs as another user and serves checkpoints: it can read them through the folder's group.
FOR_THE_GROUP = 0o640
HEADER_ALIGNMENT = 8


def save_checkpoint(job: SaveCheckpoint) -> tuple[str, int]:
    """Write the checkpoint and its JSON; returns the file's blake3 digest and its size in bytes."""
    layout = Layout(parameter_shapes(job.model_spec))
    tensors = layout.views(open_vector(job.model, layout.size))
    job.out.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    # One key only: safetensors writes several in any order, and equal models should be equal files.
    digest, size = write_safetensors(job.out, tensors, {"fedsim": job.model_spec.model_dump_json()})
    write_json(job.out.with_suffix(".json"), {**job.about, "digest": digest, "size": size}, FOR_THE_GROUP)
    return digest, size


def write_safetensors(path: Path, tensors: Arrays, description: Mapping[str, str]) -> tuple[str, int]:
    """Durably write float32 arrays as the library would, to the byte, but from mapped files and in blocks.

    The library itself writes next to the file, under a name that nothing clears away after a crash, and does not give a
    digest. The format: https://huggingface.co/docs/safetensors, a JSON header after its length, then the numbers.

    Returns:
        The file's blake3 digest and its size in bytes.
    """
    header: dict[str, object] = {"__metadata__": dict(description)}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    hasher, size = blake3(), 0
    with replacing(path, FOR_THE_GROUP) as file:
        numbers = (
            np.ascontiguousarray(tensors[name], "<f4").reshape(-1).view(np.uint8).data for name in sorted(tensors)
        )
        for part in (memoryview(struct.pack("<Q", len(text)) + text), *numbers):
            for start in range(0, len(part), BLOCK_BYTES):
                block = part[start : start + BLOCK_BYTES]
                hasher.update(block)
                write_all(file, block)
            size += len(part)
    return hasher.hexdigest(), size


def task_schema(path: Path) -> DataSchema | None:
    """The columns and labels of a checkpoint's task, from the JSON next to it; None if that is not there or older."""
    try:
        about = json.loads(path.with_suffix(".json").read_bytes()).get("data_schema")
        return None if about is None else DataSchema.model_validate(about)
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        raise BadInput(f"{path.with_suffix('.json')} does not describe a checkpoint of fedsim: {error}") from error


def load_checkpoint(path: Path) -> tuple[torch.nn.Module, ModelSpec]:
    """Load the model of a checkpoint as a network, and its specification.

    Raises:
        BadInput: if `path` is not a checkpoint of fedsim.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["fedsim"])
            spec = ModelSpec.model_validate(model_spec_from_0_1(about))
            model = build_model(spec)
            expected = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a dict
            if expected != found:
                raise BadInput(f"{path} does not contain the parameters of the model {spec.name}: {found}")
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(torch.from_numpy(file.get_tensor(name)))
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is not a checkpoint of fedsim: {error}") from error
    return model, spec
