"""Data sets from files: what is read, and what malformed files get."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.config.models import DataSetConfig
from fedsim.data import DataSet, Examples, arrays_to_examples, inspect_dataset, load_dataset, load_features
from fedsim.data.split import split_indices
from fedsim.errors import BadInput


def _config(path: str, **chosen: Any) -> DataSetConfig:
    return DataSetConfig(name="it", path=Path(path), **chosen)


def _idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


IMAGES = np.arange(12 * 4 * 5, dtype=np.uint8).reshape(12, 4, 5)
LABELS = np.arange(12, dtype=np.uint8) % 3


def _mnist(folder: Path, *, packed: bool = False, test: bool = True) -> Path:
    folder.mkdir()
    for prefix, count in (("train", 12), ("t10k", 5)):
        if prefix == "t10k" and not test:
            continue
        for name, array in (("images-idx3", IMAGES[:count]), ("labels-idx1", LABELS[:count])):
            content = _idx(array)
            file = folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_become_images_and_labels(tmp_path: Path, packed: bool) -> None:
    _mnist(tmp_path / "mnist", packed=packed)
    dataset = load_dataset(_config("mnist"), tmp_path)
    assert dataset.test is not None
    assert dataset.train.features.dtype == np.uint8
    assert np.array_equal(dataset.train.features, IMAGES)
    assert dataset.train.labels.dtype == np.int64
    assert np.array_equal(dataset.test.labels, LABELS[:5])
    assert (dataset.num_classes, dataset.feature_shape) == (3, (4, 5))
    taken = dataset.train.take(np.array([3, 1]))
    assert taken.dtype == np.float32
    assert np.array_equal(taken, IMAGES[[3, 1]].astype(np.float32) / np.float32(255))


def test_the_digest_depends_on_the_data_and_not_on_compression(tmp_path: Path) -> None:
    _mnist(tmp_path / "plain")
    _mnist(tmp_path / "packed", packed=True)
    _mnist(tmp_path / "lone", test=False)
    _mnist(tmp_path / "other")
    labels = tmp_path / "other" / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\0")
    infos = {
        name: inspect_dataset(_config(name, share=True), tmp_path) for name in ("plain", "packed", "lone", "other")
    }
    assert infos["plain"] == infos["packed"]
    assert len({info.digest for info in infos.values()}) == 3
    assert (infos["plain"].num_train, infos["plain"].num_test, infos["plain"].share_test) == (12, 5, True)
    assert (infos["lone"].num_test, infos["lone"].share_test) == (0, False)


def test_an_uncompressed_file_goes_before_its_compressed_twin(tmp_path: Path) -> None:
    folder = _mnist(tmp_path / "mnist")
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"never read")
    assert len(load_dataset(_config("mnist"), tmp_path).train) == 12
    (folder / "other-train-images-idx3-ubyte").write_bytes(_idx(IMAGES))
    with pytest.raises(BadInput, match="are both train images; keep one"):
        load_dataset(_config("mnist"), tmp_path)


def _replace(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None  # type: ignore[func-returns-value]


IMAGE_FILE, LABEL_FILE = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_replace(IMAGE_FILE, b"<html>not found</html>"), "at byte 0: not an IDX file"),
        (_replace(IMAGE_FILE, b""), "not an IDX file, it begins with nothing"),
        (_replace(IMAGE_FILE, b"\0\0\x0d\3" + bytes(12)), "at byte 2: type 13 with 3 dimensions"),
        (_replace(IMAGE_FILE, b"\0\0\x08\x09" + bytes(36)), "at byte 2: type 8 with 9 dimensions"),
        (_replace(IMAGE_FILE, b"\0\0\x08\3" + bytes(5)), "at byte 4: ends within its header"),
        (_replace(IMAGE_FILE, _idx(IMAGES)[:-1]), "240 bytes, but"),
        (_replace(IMAGE_FILE, _idx(IMAGES) + b"!"), "but more than 240 follow"),
        (_replace(IMAGE_FILE, b"\0\0\x08\3" + b"\xff" * 12), "download it again"),
        (_replace(IMAGE_FILE, gzip.compress(b"\0\0\x08\3" + b"\xff" * 12)), "download it again"),
        (_replace(IMAGE_FILE, gzip.compress(_idx(IMAGES))[:-12]), "damaged gzip file"),
        (_replace(IMAGE_FILE, b"\x1f\x8b" + bytes(30)), "damaged gzip file"),
        (_replace(IMAGE_FILE, _idx(LABELS)), "is it a file of labels"),
        (_replace(LABEL_FILE, _idx(IMAGES)), "is it a file of images"),
        (_replace(LABEL_FILE, _idx(LABELS[:-1])), "12 images, but .* 11 labels"),
        (lambda folder: (folder / LABEL_FILE).unlink(), "train-labels-idx1-ubyte .* is missing"),
        (lambda folder: (folder / "t10k-images-idx3-ubyte").unlink(), "t10k-images-idx3-ubyte .* is missing"),
        (_replace("t10k-images-idx3-ubyte", _idx(IMAGES[:5, :2])), r"shape \[4, 5\], test examples \[2, 5\]"),
        (_replace(IMAGE_FILE, _idx(IMAGES[:0])), "0 images, but"),
    ],
)
def test_a_malformed_idx_file_is_named_with_the_place_and_what_to_do(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(_mnist(tmp_path / "mnist"))
    with pytest.raises(BadInput, match=message) as caught:
        load_dataset(_config("mnist", format="idx"), tmp_path)
    assert str(tmp_path / "mnist") in str(caught.value)


@given(content=st.binary(max_size=60))
def test_no_bytes_at_all_break_the_idx_parser(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("idx") / "mnist"
    _replace(IMAGE_FILE, b"\0\0\x08" + content)(_mnist(folder))
    with pytest.raises(BadInput):
        load_dataset(_config("mnist", format="idx"), folder.parent)


FEATURES = np.linspace(-1, 1, 30).reshape(10, 3)
CLASSES = np.arange(10) % 2


@pytest.mark.parametrize(
    "names",
    [("x_train", "y_train", "x_test", "y_test"), ("train_features", "train_labels", "test_features", "test_labels")],
)
def test_npz_archives_become_arrays(tmp_path: Path, names: tuple[str, ...]) -> None:
    arrays = (FEATURES, CLASSES, FEATURES[:4], CLASSES[:4, None])
    np.savez_compressed(tmp_path / "it.npz", **dict(zip(names, arrays, strict=True)))
    dataset = load_dataset(_config("it.npz"), tmp_path)
    assert dataset.test is not None
    assert dataset.train.features.dtype == np.float32
    assert np.array_equal(dataset.train.take(slice(None)), FEATURES.astype(np.float32))
    assert np.array_equal(dataset.test.labels, CLASSES[:4])


def test_npz_pixels_stay_bytes_and_colours_come_first(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(256, size=(10, 6, 7, 3), dtype=np.uint8)
    np.savez(tmp_path / "it.npz", features=images, labels=CLASSES)
    dataset = load_dataset(_config("it.npz"), tmp_path)
    assert dataset.feature_shape == (3, 6, 7)
    assert dataset.train.features.dtype == np.uint8
    assert np.array_equal(
        dataset.train.take(slice(0, 1))[0, 2], images[0, :, :, 2].astype(np.float32) / np.float32(255)
    )


def test_an_npz_test_set_may_be_a_file_of_its_own(tmp_path: Path) -> None:
    np.savez(tmp_path / "it.npz", x=FEATURES, y=CLASSES)
    np.savez(tmp_path / "test.npz", x=FEATURES[:3], y=CLASSES[:3])
    dataset = load_dataset(_config("it.npz", test_path=Path("test.npz")), tmp_path)
    assert dataset.test is not None
    assert len(dataset.test) == 3


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": FEATURES}, "no array y_train or .* .available: x_train"),
        ({"x_train": FEATURES, "y_train": CLASSES[:-1]}, "one label for each"),
        ({"x_train": FEATURES, "y_train": CLASSES * 0.5}, "labels are float64, they must be whole numbers"),
        ({"x_train": FEATURES[:, 0], "y_train": CLASSES}, "features are float64"),
        ({"x_train": FEATURES.astype(str), "y_train": CLASSES}, "they must be numbers"),
        ({"x_train": FEATURES.astype(object), "y_train": CLASSES}, "array x_train: Object arrays cannot be loaded"),
        ({"x_train": np.where(FEATURES > 0.9, np.nan, FEATURES), "y_train": CLASSES}, "example 9 .* not finite"),
        ({"x_train": FEATURES * 1e300, "y_train": CLASSES}, "example 0 .* not finite"),
        ({"x_train": FEATURES, "y_train": CLASSES - 1}, "example 0 has the label -1"),
        ({"x_train": FEATURES, "y_train": CLASSES * 10**6}, "1000001 classes; from 2 to 100000"),
        ({"x_train": FEATURES[:0], "y_train": CLASSES[:0]}, "there are no examples"),
        ({"x_train": FEATURES, "y_train": CLASSES, "x_test": FEATURES[:, :2], "y_test": CLASSES}, "must be alike"),
        (
            {"x_train": np.ones((2, 1, 1, 1, 1, 3)), "y_train": CLASSES[:2]},
            r"shape \[1, 1, 1, 1, 3\]; it may have 1 to 4",
        ),
        ({"x_train": np.ones((2, 10**6 + 1)), "y_train": CLASSES[:2]}, r"\[1000001\]; .* each up to 1000000 long"),
    ],
)
def test_npz_arrays_that_do_not_fit_are_named(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "it.npz", **arrays)
    with pytest.raises(BadInput, match=message) as caught:
        load_dataset(_config("it.npz"), tmp_path)
    assert "it.npz" in str(caught.value)


def test_a_damaged_npz_is_named(tmp_path: Path) -> None:
    file = tmp_path / "it.npz"
    np.savez(file, x=FEATURES, y=CLASSES)
    whole = file.read_bytes()
    for content, message in (
        (b"", "not a complete"),
        (whole[: len(whole) // 2], "not a complete"),
        (b"PK", "not a complete"),
    ):
        file.write_bytes(content)
        with pytest.raises(BadInput, match=message):
            load_dataset(_config("it.npz"), tmp_path)


def test_an_npz_header_is_not_believed_before_it_is_measured(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)})
    with zipfile.ZipFile(tmp_path / "it.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(12))
    with pytest.raises(BadInput, match=r"array x: its header says 12000000000000 bytes, not 12"):
        load_dataset(_config("it.npz"), tmp_path)


def _cifar(folder: Path) -> np.ndarray:
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = rng.integers(256, size=(7, 3073), dtype=np.uint8)
    records[:, 0] = [0, 1, 9, 3, 4, 5, 6]
    for name, part in (("data_batch_1", records[:2]), ("data_batch_2", records[2:5]), ("test_batch", records[5:])):
        (folder / f"{name}.bin").write_bytes(part.tobytes())
    return records


def test_cifar_batches_become_colour_images_in_order(tmp_path: Path) -> None:
    records = _cifar(tmp_path / "cifar")
    dataset = load_dataset(_config("cifar"), tmp_path)
    assert dataset.test is not None
    assert (dataset.feature_shape, dataset.num_classes) == ((3, 32, 32), 10)
    assert dataset.train.labels.tolist() == [0, 1, 9, 3, 4]
    assert np.array_equal(dataset.train.features.reshape(5, -1), records[:5, 1:])
    assert dataset.test.labels.tolist() == [5, 6]


def test_malformed_cifar_batches_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar"
    records = _cifar(folder)
    records[1, 0] = 10
    (folder / "data_batch_1.bin").write_bytes(records.tobytes())
    with pytest.raises(BadInput, match=r"data_batch_1\.bin: at byte 3073: label 10"):
        load_dataset(_config("cifar"), tmp_path)
    (folder / "data_batch_1.bin").write_bytes(records.tobytes()[:-1])
    with pytest.raises(BadInput, match="not a whole number of records"):
        load_dataset(_config("cifar"), tmp_path)


def test_digits_are_always_at_hand_and_split_the_same_way(tmp_path: Path) -> None:
    dataset = load_dataset(_config("digits", format="digits"), tmp_path)
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test), dataset.feature_shape) == (1438, 359, (8, 8))
    assert dataset.train.take(slice(None)).max() == 1.0
    assert np.bincount(dataset.test.labels).min() > 20
    info = inspect_dataset(_config("digits", format="digits"), tmp_path)
    assert info.digest == "cccb1c6c5c687300afc087b20d8cce5c0d60a1f6c8b5165c23f79cca5175af84"


@given(count=st.integers(10, 2000), share=st.floats(0.1, 0.9))
def test_a_split_is_complete_and_of_the_size_asked_for(count: int, share: float) -> None:
    train, test = split_indices(count, share, "it")
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(count))
    assert len(test) == round(count * share)


def test_a_share_of_the_examples_may_be_the_test_set(tmp_path: Path) -> None:
    _mnist(tmp_path / "mnist", test=False)
    dataset = load_dataset(_config("mnist", test_share=0.25), tmp_path)
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (9, 3)
    with pytest.raises(BadInput, match=r"test_share 0.01 of 12 examples leaves none"):
        load_dataset(_config("mnist", test_share=0.01), tmp_path)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"path": "empty"}, "match no known format"),
        ({"path": "none"}, "does not exist"),
        ({"path": "none", "format": "csv", "label_column": "y"}, "cannot be read: No such file"),
        ({"path": "mnist", "format": "npz"}, "cannot be read: Is a directory"),
        ({"path": "both"}, "match cifar10 and idx; set `format`"),
        ({"path": "mnist", "label_column": "y"}, "label_column: idx has no options"),
    ],
)
def test_a_data_set_that_cannot_be_found_is_reported(tmp_path: Path, chosen: dict[str, Any], message: str) -> None:
    _mnist(tmp_path / "mnist")
    (tmp_path / "empty").mkdir()
    _cifar(tmp_path / "both")
    (tmp_path / "both" / IMAGE_FILE).write_bytes(_idx(IMAGES))
    with pytest.raises(BadInput, match=message):
        load_dataset(_config(**chosen), tmp_path)


def test_a_test_set_survives_being_sent_as_plain_arrays() -> None:
    examples = Examples(IMAGES, LABELS.astype(np.int64), 255.0)
    features, labels = examples.arrays()
    received = arrays_to_examples(features, labels, 3, "node-1")
    assert np.array_equal(received.take(slice(None)), examples.take(slice(None)))
    with pytest.raises(BadInput, match="node-1: a test set is float32"):
        arrays_to_examples(features.astype(np.float64), labels, 3, "node-1")
    with pytest.raises(BadInput, match="node-1: example 2 has the label 2"):
        arrays_to_examples(features, labels, 2, "node-1")
    with pytest.raises(BadInput, match="12 examples but 11 labels"):
        arrays_to_examples(features, labels[1:], 3, "node-1")


def test_examples_without_labels_are_read_for_prediction(tmp_path: Path) -> None:
    folder = _mnist(tmp_path / "mnist")
    np.save(tmp_path / "new.npy", IMAGES[:2])
    np.savez(tmp_path / "new.npz", features=IMAGES[:2] / np.float32(255))
    config = _config("mnist")
    expected = load_dataset(config, tmp_path).train.take(slice(0, 2))
    assert np.array_equal(load_features(config, tmp_path, tmp_path / "new.npy"), expected)
    assert np.array_equal(load_features(config, tmp_path, tmp_path / "new.npz"), expected)
    np.save(tmp_path / "wrong.npy", IMAGES[:, :2])
    with pytest.raises(BadInput, match=r"shape \[2, 5\], the data set's \[4, 5\]"):
        load_features(config, tmp_path, tmp_path / "wrong.npy")
    with pytest.raises(BadInput, match=r"neither \.csv, \.npz nor \.npy"):
        load_features(config, tmp_path, folder / IMAGE_FILE)


def test_reading_data_never_imports_torch() -> None:
    code = "import sys, fedsim.data, fedsim.data.cifar, fedsim.data.idx; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_data_set_knows_the_shape_of_an_example() -> None:
    assert DataSet(Examples(IMAGES, LABELS.astype(np.int64)), None, 3).feature_shape == (4, 5)
