"""Well-known data in another layout is recognised by the names of its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsim.config.models import DataSetConfig
from fedsim.data import load_dataset
from fedsim.errors import BadInput

IDX = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        (
            [f"data/MNIST/raw/{name}" for name in IDX],
            "data",
            "found MNIST/raw/train-images-.*set `path` to the folder raw",
        ),
        (
            ["data/cifar-10-batches-bin/data_batch_1.bin"],
            "data",
            "found cifar-10-batches-bin/data_batch_1.bin: set `path`",
        ),
        (
            ["py/data_batch_1", "py/batches.meta"],
            "py",
            "is the Python version of CIFAR-10, .*download the binary version",
        ),
        (["data/py/data_batch_1"], "data", "py is the Python version of CIFAR-10"),
        (["mat/data_batch_1.mat"], "mat", "is the Matlab version of CIFAR-10"),
        ([f"mnist/{name}" for name in IDX], f"mnist/{IDX[0]}", "is one of several files: set `path` to the folder"),
        (["x.xlsx"], "x.xlsx", "is a workbook of a spreadsheet; save the table as CSV or Parquet"),
        (["x.pkl"], "x.pkl", "is pickled, and nothing is ever unpickled"),
        (["x.npy"], "x.npy", "holds one array, but features and labels are needed"),
        (["cifar-10-binary.tar.gz"], "cifar-10-binary.tar.gz", "is an archive; unpack it"),
        (["bank.data"], "bank.data", r"may be a table \(set `format: csv`\) or plain text"),
        (["bank/a.csv", "bank/b.csv"], "bank", "it is a folder: set `path` to one file, such as a.csv"),
        (["other/x.xyz"], "other", "its files match no known format; set `format`"),
    ],
)
def test_a_near_miss_is_named_with_what_to_do(tmp_path: Path, files: list[str], path: str, message: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"\x80\x03}q\x00.")
    with pytest.raises(BadInput, match=message):
        load_dataset(DataSetConfig(name="it", path=Path(path)), tmp_path)


def test_a_near_miss_is_also_recognised_where_the_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "py").mkdir()
    (tmp_path / "py" / "data_batch_1").touch()
    with pytest.raises(BadInput, match="is the Python version of CIFAR-10"):
        load_dataset(DataSetConfig(name="it", path=Path("py"), format="cifar10"), tmp_path)


def test_keras_names_of_arrays_are_read_and_arrays_without_names_explained(tmp_path: Path) -> None:
    images, labels = np.zeros((6, 4, 4), np.uint8), np.arange(6, dtype=np.uint8) % 2
    np.savez(
        tmp_path / "keras.npz", train_images=images, train_labels=labels, test_images=images[:2], test_labels=labels[:2]
    )
    dataset = load_dataset(DataSetConfig(name="it", path=Path("keras.npz")), tmp_path)
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (6, 2)
    np.savez(tmp_path / "positional.npz", images, labels)
    with pytest.raises(BadInput, match=r"available: arr_0, arr_1.; save arrays with names"):
        load_dataset(DataSetConfig(name="it", path=Path("positional.npz")), tmp_path)
