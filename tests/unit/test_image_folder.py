"""Folders of images: classes, clients, sizes and colours, and what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.config import DataSetConfig
from fedsim.data import DataSet, load_dataset
from fedsim.data.formats import find_format
from fedsim.data.image_folder import ImageFolder
from fedsim.errors import BadInput


def load(folder: Path, **keys: Any) -> DataSet:
    return load_dataset(config(**keys), folder)


def config(**keys: Any) -> DataSetConfig:
    return DataSetConfig.model_validate({"name": "photos", "path": "photos", "access": "open", **keys})


def save(folder: Path, name: str, value: int, size: tuple[int, int] = (4, 3), mode: str = "L") -> None:
    file = folder / "photos" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    colour = value if mode == "L" else (value, 0, 255 - value)
    Image.new(mode, size, colour).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for at, name in enumerate(("cat/1.png", "cat/2.pgm", "dog/1.bmp", "dog/2.png")):
        save(tmp_path, name, 10 * at)
    (tmp_path / "photos" / "cat" / "notes.txt").write_text("These are notes.", encoding="utf-8")
    return tmp_path


def test_a_folder_is_a_class_by_its_name(folder: Path) -> None:
    data = load(folder)
    assert isinstance(find_format(config(), folder / "photos"), ImageFolder)
    assert data.train.features.shape == (4, 3, 4)
    assert data.train.features[:, 0, 0].tolist() == [0, 10, 20, 30]
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.data_schema is not None
    assert data.data_schema.labels == ("cat", "dog")
    assert data.data_schema.layout == "H W"
    assert data.train.take(slice(0, 2))[1, 0, 0] == pytest.approx(10 / 255)


def test_colours_come_first_as_models_take_them(folder: Path) -> None:
    save(folder, "dog/3.png", 40, mode="RGB")
    data = load(folder)
    assert data.train.features.shape == (5, 3, 3, 4)
    assert data.train.features[4, :, 0, 0].tolist() == [40, 0, 215]
    assert load(folder, colours="gray").train.features.shape == (5, 3, 4)


def test_jpeg_is_read_and_sizes_agree_or_are_scaled(folder: Path) -> None:
    save(folder, "dog/3.jpg", 40, size=(8, 6))
    with pytest.raises(BadInput, match=r"dog/3\.jpg: has the shape \[6, 8\], but .*cat/1\.png has the shape \[3, 4\]"):
        load(folder)
    scaled = load(folder, height=6, width=8)
    assert scaled.train.features.shape == (5, 6, 8)
    assert abs(int(scaled.train.features[4, 2, 2]) - 40) <= 2
    with pytest.raises(BadInput, match="set both height and width"):
        load(folder, height=6)


def test_folders_train_and_test_are_the_two_sets(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/dog/1.png", "test/dog/9.png"):
        save(tmp_path, name, 7)
    data = load(tmp_path)
    assert data.test is not None
    assert (len(data.train), data.test.labels.tolist()) == (2, [1])
    save(tmp_path, "test/cat/8.png", 7, size=(9, 9))
    with pytest.raises(BadInput, match=r"test/cat/8\.png: has the shape \[9, 9\], but the training images"):
        load(tmp_path)


def test_the_folders_above_can_be_clients(tmp_path: Path) -> None:
    for name in ("bob/cat/1.png", "ann/dog/1.png", "ann/cat/1.png"):
        save(tmp_path, name, 7)
    data = load(tmp_path, client_folders=True)
    assert data.train.clients is not None
    assert list(zip(data.train.clients.tolist(), data.train.labels.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0)]
    with pytest.raises(BadInput, match="if the folders above are clients, set `client_folders: true`"):
        load(tmp_path)


def test_a_damaged_image_is_named(folder: Path) -> None:
    file = folder / "photos" / "dog" / "2.png"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(BadInput, match=r"dog/2\.png: (a damaged image|not an image)"):
        load(folder)
    file.write_bytes(b"not an image at all")
    with pytest.raises(BadInput, match=r"dog/2\.png: not an image, or a damaged one"):
        load(folder)


@pytest.mark.parametrize("side", [7_500, 10_000, 100_000])
def test_a_decompression_bomb_is_refused_by_its_header(folder: Path, side: int) -> None:
    """A few bytes whose header claims billions of pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    parts = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    (folder / "photos" / "dog" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(BadInput, match=r"dog/2\.png: .*pixels"):
        load(folder)


def test_images_with_more_bits_are_refused(folder: Path) -> None:
    Image.fromarray(np.full((3, 4), 40_000, np.uint16)).save(folder / "photos" / "dog" / "2.png")
    with pytest.raises(BadInput, match=r"dog/2\.png: has more than 8 bits for each pixel"):
        load(folder)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    save(tmp_path, "cat/1.png", 7)
    with pytest.raises(BadInput, match="1 folders with images; at least two are needed"):
        load(tmp_path)
