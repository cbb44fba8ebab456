"""Loads and validates a configured data set, and describes it for the server."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from fedsim.config.models import DataSetConfig
from fedsim.data.formats import find_format
from fedsim.data.guard import extend_division
from fedsim.data.npz import read_features
from fedsim.data.schema import array_schema, scale_notes
from fedsim.data.split import hold_out, split_off_test
from fedsim.data.table import Table
from fedsim.data_schema import NAMED_TARGETS, Targets
from fedsim.errors import BadInput
from fedsim.label_counts import MOST_LABELS
from fedsim.learning.examples import DataSet, Examples, FloatArray, IntArray, check_targets
from fedsim.learning.partition_view import strata_length
from fedsim.learning.partitions.natural import sizes_in_steps
from fedsim.messages import MAX_CLASSES, MAX_DIMENSIONS, MAX_LENGTH, MAX_NOTES, DataSetInfo, GuardInfo

MAX_CLIENTS = 10**7
"""Most clients that a data set names; a test set has the numbers of all, and may lack most of them."""


def load_dataset(config: DataSetConfig, folder: Path) -> DataSet:
    """Read a data set from the node's data folder.

    Returns:
        Pixels are uint8 [n, H, W] or [n, C, H, W] with scale 255, all else float32; labels int64 [n].

    Raises:
        BadInput: with the file, the position in it, and what is expected.
    """
    path = find_path(folder, config.path)
    source = f"data set {config.name}: {path}"
    test_path = None if config.test_path is None else find_path(folder, config.test_path)
    try:
        dataset = find_format(config, path).load(config, path, test_path)
    except OSError as error:
        raise BadInput(f"{source}: {error.filename or path} cannot be read: {error.strerror or error}") from error
    if dataset.test is None and config.test_share is not None:
        dataset = split_off_test(dataset, config.test_share, source)
    if config.validation_share is not None and config.access == "open":
        dataset = hold_out(dataset, config.validation_share, source)
    _check(dataset, source)
    return dataset if dataset.data_schema is not None else replace(dataset, data_schema=array_schema(dataset))


def find_path(folder: Path, path: Path) -> Path:
    """The path in the folder; Unicode can write a name in several forms, and the file may have another one."""
    found = folder
    for part in path.parts:
        wanted = unicodedata.normalize("NFC", part)
        inside = found.iterdir() if found.is_dir() and not (found / part).exists() else iter(())
        found = next((item for item in inside if unicodedata.normalize("NFC", item.name) == wanted), found / part)
    return found


def load_features(config: DataSetConfig, folder: Path, file: Path) -> FloatArray:
    """Read examples without labels for prediction, prepared like the training examples of a data set.

    Args:
        config: the data set on which the model was trained; a table is scaled and filled in the same way.
        folder: the node's data folder.
        file: a table with the data set's feature columns, an `.npz` with `features` or `x`, or an `.npy`.

    Returns:
        float32 [n, *shape].

    Raises:
        BadInput: the file cannot be read, or its examples do not have the data set's shape.
    """
    try:
        path = find_path(folder, config.path)
        form = find_format(config, path)
        if isinstance(form, Table) and file.suffix.lower() not in {".npy", ".npz"}:
            return form.load_features(config, path, file)
        return _load_array_features(load_dataset(config, folder).train, file)
    except OSError as error:
        raise BadInput(f"{error.filename or file} cannot be read: {error.strerror or error}") from error


def _load_array_features(train: Examples, file: Path) -> FloatArray:
    features = read_features(file)
    if features.shape[1:] != train.feature_shape:
        raise BadInput(
            f"{file}: examples have the shape {list(features.shape[1:])}, the data set's {list(train.feature_shape)}"
        )
    scale = train.scale if features.dtype == np.uint8 else 1.0
    return Examples(features, np.zeros(len(features), np.int64), scale).take(slice(None))


def inspect_dataset(config: DataSetConfig, folder: Path, guard: tuple[Path, int] | None = None) -> DataSetInfo:
    """Read a data set and describe it for the server; raises `BadInput` like `load_dataset`.

    The digest covers the resulting arrays, so it does not matter whether files were compressed. A guarded data set is
    divided into blocks: `guard` is the file of its division, and the least size of a block.
    """
    dataset = load_dataset(config, folder)
    info = describe(config, dataset)
    if guard is None:
        return _with_labels(info, config, dataset.train.strata)
    division, num_held_out = extend_division(guard[0], config.name, dataset.train, guard[1]), info.num_held_out
    if config.validation_share is not None:
        division, held_out = division.hold_out(config.validation_share, config.name)
        num_held_out = len(held_out)
    notes = [f"guarded, in blocks of {division.size} examples"]
    if division.retired:
        notes.append("some examples are used no more, because others of their blocks are gone")
    blocks = GuardInfo(secret_digest=division.secret_digest, block_size=division.size, num_blocks=division.num_blocks)
    update = {"guard": blocks, "num_train": len(division.order), "notes": (*notes, *info.notes)[:MAX_NOTES]}
    update["num_held_out"] = num_held_out
    return _with_labels(info.model_copy(update=update), config, dataset.train.strata[division.order])


def _with_labels(info: DataSetInfo, config: DataSetConfig, strata: IntArray) -> DataSetInfo:
    """With the number of training examples of each label, int64 [n], if the owner shows it and they are not too many.

    What of it leaves the node depends on the institution's `min_count`, see `client.announcing`.
    """
    length = strata_length(strata, info.num_classes)
    if not config.show_labels or length > MOST_LABELS:
        return info
    return info.model_copy(update={"label_counts": tuple(np.bincount(strata, minlength=length).tolist())})


def describe(config: DataSetConfig, dataset: DataSet) -> DataSetInfo:
    """Describe a loaded data set for the server."""
    clients = dataset.train.clients
    return DataSetInfo(
        name=config.name,
        digest=dataset_digest(dataset),
        num_train=len(dataset.train),
        num_test=0 if dataset.test is None else len(dataset.test),
        num_held_out=0 if (held_out := dataset.held_out or dataset.test) is None else len(held_out),
        feature_shape=dataset.feature_shape,
        num_classes=dataset.num_classes,
        share_test=config.share and dataset.test is not None,
        data_schema=dataset.data_schema,
        notes=scale_notes(dataset),
        natural_clients=() if clients is None or config.access != "open" else sizes_in_steps(clients),
    )


def dataset_digest(dataset: DataSet) -> str:
    """The blake3, as hex, of a data set's arrays with their types and shapes, and of its number of classes."""
    kind = dataset.train.targets
    digest = blake3(f"classes {dataset.num_classes}\n".encode())
    if kind != "classes":
        digest.update(f"targets {kind}\n".encode())
    for name, examples in (("train", dataset.train), ("test", dataset.test), ("held out", dataset.held_out)):
        if examples is None:
            continue
        for part, array in (("features", examples.features), ("labels", examples.labels)):
            little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            digest.update(f"{name} {part} {little.dtype.str} {little.shape} / {examples.scale}\n".encode())
            digest.update(little.data.cast("B"))
    if (clients := dataset.train.clients) is not None:
        digest.update(f"clients {clients.shape}\n".encode())
        digest.update(np.ascontiguousarray(clients, "<i8").data.cast("B"))
    return digest.hexdigest()


def arrays_to_examples(
    features: NDArray[Any], labels: NDArray[Any], num_classes: int, source: str, targets: Targets = "classes"
) -> Examples:
    """Validate a received test set (see `Examples.arrays`).

    Args:
        features: float32 [n, *shape].
        labels: int64 [n], or as the kind of the targets says.
        num_classes: the task's.
        source: the sender, for messages.
        targets: the kind of the labels.

    Raises:
        BadInput: types, lengths or values are wrong.
    """
    plain = targets != "classes" or (labels.dtype == np.int64 and labels.ndim == 1)
    if features.dtype != np.float32 or features.ndim < 2 or not plain:
        raise BadInput(
            f"{source}: a test set is float32 [n, …] and int64 [n]; got {features.dtype} {list(features.shape)} "
            f"and {labels.dtype} {list(labels.shape)}"
        )
    examples = Examples(features, labels, targets=targets)
    _check_examples(examples, num_classes, source)
    return examples


def _check(dataset: DataSet, source: str) -> None:
    """Check what every format must guarantee, and that training and test set match."""
    kind = dataset.train.targets
    least, what = (1, kind) if kind in NAMED_TARGETS else (2, "classes")
    if not least <= dataset.num_classes <= MAX_CLASSES:
        raise BadInput(f"{source}: has {dataset.num_classes} {what}; from {least} to {MAX_CLASSES} are possible")
    _check_examples(dataset.train, dataset.num_classes, f"{source}, training set")
    if dataset.test is not None:
        _check_examples(dataset.test, dataset.num_classes, f"{source}, test set")
        if dataset.test.targets != kind:
            raise BadInput(
                f"{source}: the training set has targets that are {kind}, the test set {dataset.test.targets}"
            )
        if dataset.test.feature_shape != dataset.feature_shape:
            raise BadInput(
                f"{source}: training examples have the shape {list(dataset.feature_shape)}, "
                f"test examples {list(dataset.test.feature_shape)}; they must be alike"
            )


def _check_examples(examples: Examples, num_classes: int, source: str) -> None:
    features, labels = examples.features, examples.labels
    plain = examples.targets != "classes" or (labels.dtype == np.int64 and labels.ndim == 1)
    if features.dtype not in (np.uint8, np.float32) or not plain:
        raise BadInput(
            f"{source}: features must be uint8 or float32 and labels int64 [n]; "
            f"they are {features.dtype} and {labels.dtype} {list(labels.shape)}"
        )
    shape = examples.feature_shape
    if not 1 <= len(shape) <= MAX_DIMENSIONS or max(shape) > MAX_LENGTH:
        raise BadInput(
            f"{source}: an example has the shape {list(shape)}; it may have 1 to {MAX_DIMENSIONS} dimensions, "
            f"each up to {MAX_LENGTH} long"
        )
    count = len(labels)
    if len(features) != count:
        raise BadInput(f"{source}: there are {len(examples.features)} examples but {count} labels")
    if not count or 0 in examples.feature_shape:
        raise BadInput(f"{source}: there are no examples (features have the shape {list(examples.features.shape)})")
    clients = examples.clients
    if clients is not None and (clients.shape != (count,) or not 0 <= clients.min() <= clients.max() < MAX_CLIENTS):
        raise BadInput(f"{source}: each example must have the number of its client, from 0 to {MAX_CLIENTS - 1}")
    check_targets(labels, examples.targets, num_classes, source)
    places = {"tokens": shape[:1], "mask": shape[-2:]}.get(examples.targets)
    if places is not None and labels.shape[1:] != places:
        raise BadInput(
            f"{source}: an example has the shape {list(shape)}, its {examples.targets} {list(labels.shape[1:])}; there "
            "must be one class for each place"
        )
    if examples.features.dtype == np.float32:
        finite = np.isfinite(examples.features.reshape(count, -1)).all(axis=1)
        if not finite.all():
            raise BadInput(f"{source}: example {np.flatnonzero(~finite)[0]} holds a value that is not finite")
