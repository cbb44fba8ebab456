"""Checkpoints: safetensors files with a JSON file that records their origin."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from fedsim.data_schema import DataSchema
from fedsim.errors import BadInput
from fedsim.learning.networks import build_model, load_vector
from fedsim.legacy_settings import model_spec_from_0_1
from fedsim.messages import ModelSpec
from fedsim.spool.durable import write_bytes, write_json
from fedsim.spool.npy import hash_file, open_vector
from fedsim.worker.jobs import SaveCheckpoint

# The web runs as another user and serves checkpoints: it can read them through the folder's group.
FOR_THE_GROUP = 0o640


def save_checkpoint(job: SaveCheckpoint) -> tuple[str, int]:
    """Write the checkpoint and its JSON; returns the file's blake3 digest and its size in bytes."""
    model = build_model(job.model_spec)
    load_vector(model, open_vector(job.model))
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.named_parameters()}
    # One key only: safetensors writes several in any order, and equal models should be equal files.
    description = {"fedsim": job.model_spec.model_dump_json()}
    job.out.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    content = safetensors.torch.save(tensors, metadata=description)
    write_bytes(job.out, content, FOR_THE_GROUP)
    digest = hash_file(job.out)
    size = job.out.stat().st_size
    write_json(job.out.with_suffix(".json"), {**job.about, "digest": digest, "size": size}, FOR_THE_GROUP)
    return digest, size


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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path} is not a checkpoint of fedsim: {error}") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise BadInput(f"{path} does not contain the parameters of the model {spec.name}: {found}")
    load_vector(model, np.concatenate([tensors[name].ravel() for name in expected]).astype(np.float32))
    return model, spec
