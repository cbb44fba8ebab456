"""CIFAR-10's binary batches: records of one label byte and 3,072 pixel bytes (red, green, blue, each 32x32)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fedsim.config.models import DataSetConfig
from fedsim.data.formats import Format
from fedsim.errors import BadInput
from fedsim.learning.examples import DataSet, Examples

SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
NUM_CLASSES = 10
PIXEL_SCALE = 255.0
TRAIN_FILE = re.compile(r"data_batch_(\d+)\.bin")
TEST_FILE = "test_batch.bin"


class Cifar10(Format):
    """A folder with data_batch_1.bin, data_batch_2.bin … and, for testing, test_batch.bin."""

    title = "CIFAR-10 – binary batches"

    def detect(self, path: Path) -> bool:
        """Whether the folder contains a batch."""
        return path.is_dir() and bool(_batches(path))

    def load(self, config: DataSetConfig, path: Path, test_path: Path | None) -> DataSet:  # noqa: ARG002
        """Pixels uint8 [n, 3, 32, 32], scale 255; batches in the order of their numbers."""
        batches = _batches(path) if path.is_dir() else []
        if not batches:
            raise BadInput(f"data set {config.name}: {path} must be a folder with data_batch_1.bin and so on")
        train = [_read(file) for file in batches]
        features = np.concatenate([part.features for part in train])
        labels = np.concatenate([part.labels for part in train])
        test = _read(path / TEST_FILE) if (path / TEST_FILE).exists() else None
        return DataSet(Examples(features, labels, PIXEL_SCALE), test, NUM_CLASSES)


def _batches(folder: Path) -> list[Path]:
    numbered = [(int(match[1]), file) for file in folder.iterdir() if (match := TRAIN_FILE.fullmatch(file.name))]
    return [file for _, file in sorted(numbered)]


def _read(file: Path) -> Examples:
    content = np.fromfile(file, np.uint8)
    if not content.size or content.size % RECORD:
        raise BadInput(
            f"{file}: {content.size} bytes are not a whole number of records of {RECORD} bytes; "
            "the binary version of CIFAR-10 is required, not the Python or Matlab one; download it again"
        )
    records = content.reshape(-1, RECORD)
    labels = records[:, 0].astype(np.int64)
    wrong = np.flatnonzero(labels >= NUM_CLASSES)
    if len(wrong):
        raise BadInput(
            f"{file}: at byte {wrong[0] * RECORD}: label {labels[wrong[0]]}; labels are 0 to {NUM_CLASSES - 1}"
        )
    return Examples(np.ascontiguousarray(records[:, 1:]).reshape(-1, *SHAPE), labels, PIXEL_SCALE)
