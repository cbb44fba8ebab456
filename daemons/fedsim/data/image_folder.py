"""Folders of images: a folder for each class, with files that Pillow reads (PNG, JPEG, PGM, BMP, TIFF, WebP …).

Classes are numbered in the order of their folders' names, which are the words of the labels, so that nodes are compared
by name. The size in an image's header is checked before any pixel is decoded.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedsim.config.models import DataSetConfig
from fedsim.data.formats import Format
from fedsim.data.schema import array_schema
from fedsim.data_schema import MAX_NAME_CHARACTERS
from fedsim.errors import BadInput
from fedsim.learning.examples import DataSet, Examples, numbered
from fedsim.messages import MAX_CLASSES
from fedsim.plugins import PluginOptions

if TYPE_CHECKING:
    from PIL import Image

PIXEL_SCALE = 255.0
FORMATS = ("PNG", "JPEG", "PPM", "BMP", "GIF", "TIFF", "WEBP")
"""The formats that are read, of all of Pillow's; PPM includes PGM and PBM. Some others, such as EPS, start programs."""
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".pbm", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
MODES = {"gray": "L", "rgb": "RGB"}
GRAY_MODES = frozenset({"1", "L", "LA"})
WIDE_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L"})
MAX_PIXELS = 50_000_000
"""Of one file. A header that claims more is refused before memory is allocated."""
SPLITS = ("train", "test")
DAMAGED = (OSError, ValueError, SyntaxError, EOFError, OverflowError, IndexError, struct.error, zlib.error)
"""What Pillow raises for damaged files."""


class ImageFolder(Format):
    """A folder for each class, with its images; or the folders train and test, with a folder for each class in both.

    Needs Pillow (the extra `images`). All images have one size, or `height` and `width` scale them. With
    `client_folders` there is a folder for each client, with the folders of the classes in it.
    """

    title = "image_folder – a folder of images for each class"
    uses_test_path = True

    class Options(PluginOptions):
        """How images are read."""

        colours: Literal["gray", "rgb"] | None = Field(
            None, title="colours", description="gray or rgb; if omitted rgb, or gray where all images are"
        )
        height: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
            None, title="height", description="Pixels to which each image is scaled; with width"
        )
        width: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
            None, title="width", description="Pixels to which each image is scaled; with height"
        )
        client_folders: bool = Field(
            False, title="client folders", description="Whether the folders of classes are in one folder of each client"
        )

    options: Options

    def detect(self, path: Path) -> bool:
        """Whether the folders below hold images, in folders of classes."""
        if not path.is_dir():
            return False
        inside = path / "train" if (path / "train").is_dir() else path
        classes = (below for folder in _folders(inside) for below in (folder, *_folders(folder)))
        return any(_is_image(file) for folder in classes for file in folder.iterdir())

    def load(self, config: DataSetConfig, path: Path, test_path: Path | None) -> DataSet:
        """Pixels uint8 [n, H, W] or [n, 3, H, W], scale 255."""
        source = f"data set {config.name}"
        if (self.options.height is None) != (self.options.width is None):
            raise BadInput(f"{source}: set both height and width, or neither")
        if not path.is_dir():
            raise BadInput(f"{source}: {path} is not a folder with a folder for each class")
        split = test_path is None and all((path / name).is_dir() for name in SPLITS)
        files = list(self._files(path / "train" if split else path))
        tests = path / "test" if split else test_path
        tested = [] if tests is None else list(self._files(tests))
        words = sorted({word for word, _, _ in (*files, *tested)})
        if not files or len(words) < 2:
            raise BadInput(f"{path}: {len(words)} folders with images; at least two are needed, one for each class")
        if len(words) > MAX_CLASSES or any(len(word) > MAX_NAME_CHARACTERS or not word.isprintable() for word in words):
            raise BadInput(
                f"{path}: there are more than {MAX_CLASSES} classes, or a name of one is too long or not printable"
            )
        colours = self.options.colours or self._colours(files + tested)
        train, test = self._examples(files, words, colours), None
        if tested:
            test = self._examples(tested, words, colours, train.feature_shape)
        dataset = DataSet(train, test, len(words))
        schema = array_schema(dataset).with_words(words)
        return DataSet(train, test, len(words), schema)

    def _files(self, folder: Path) -> Iterator[tuple[str, str, Path]]:
        """The class, the client ("" without) and the path of each image, in the order of the names."""
        clients = _folders(folder) if self.options.client_folders else [folder]
        for client in clients:
            for of_class in _folders(client):
                for file in sorted(of_class.iterdir()):
                    if file.is_dir():
                        raise BadInput(
                            f"{file}: a folder among the images of {of_class.name}; if the folders above are clients, "
                            "set `client_folders: true`"
                        )
                    if _is_image(file):
                        yield of_class.name, client.name if self.options.client_folders else "", file

    def _colours(self, files: list[tuple[str, str, Path]]) -> Literal["gray", "rgb"]:
        for _, _, file in files:
            with _opened(file) as image:
                if image.mode not in GRAY_MODES:
                    return "rgb"
        return "gray"

    def _examples(
        self, files: list[tuple[str, str, Path]], words: list[str], colours: str, shape: tuple[int, ...] | None = None
    ) -> Examples:
        """The images; `shape` is that of the training images."""
        first = f"the training images have the shape {list(shape or ())}"
        if shape is None:
            shape = self._pixels(files[0][2], colours).shape
            first = f"{files[0][2]} has the shape {list(shape)}"
        pixels = np.empty((len(files), *shape), np.uint8)
        for at, (_, _, file) in enumerate(files):
            image = self._pixels(file, colours)
            if image.shape != shape:
                raise BadInput(
                    f"{file}: has the shape {list(image.shape)}, but {first}: scale all to one size with `height` and "
                    "`width`"
                )
            pixels[at] = image
        number = {word: index for index, word in enumerate(words)}
        labels = np.array([number[word] for word, _, _ in files], np.int64)
        clients = numbered([client for _, client, _ in files]) if self.options.client_folders else None
        return Examples(pixels, labels, PIXEL_SCALE, clients=clients)

    def _pixels(self, file: Path, colours: str) -> NDArray[np.uint8]:
        """One image, uint8 [H, W] or [3, H, W]."""
        from PIL import Image  # noqa: PLC0415 - see `_opened`

        with _opened(file) as image:
            try:
                converted = image.convert(MODES[colours])
            except DAMAGED as error:
                raise BadInput(f"{file}: a damaged image ({error}); create it again") from error
        if self.options.height is not None and self.options.width is not None:
            converted = converted.resize((self.options.width, self.options.height), Image.Resampling.BILINEAR)
        pixels = np.asarray(converted)
        return np.ascontiguousarray(np.moveaxis(pixels, 2, 0)) if pixels.ndim == 3 else pixels


def _opened(file: Path) -> Image.Image:
    """An image whose header was read and checked; its pixels are not decoded yet."""
    try:
        from PIL import Image  # noqa: PLC0415 - an extra that not every host has
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{file}: images are read with Pillow, which is not installed here: install fedsim-lab[images]"
        ) from error
    try:
        with warnings.catch_warnings():  # such sizes are refused below
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
    except PermissionError:
        raise
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise BadInput(f"{file}: not an image, or a damaged one ({error}); create it again, or remove it") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise BadInput(f"{file}: {image.width}x{image.height} pixels; an image has at most {MAX_PIXELS:,}")
    if image.mode in WIDE_MODES:
        image.close()
        raise BadInput(
            f"{file}: has more than 8 bits for each pixel ({image.mode}); save it with 8 bits, or the numbers as npz"
        )
    return image


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS and file.is_file() and not file.name.startswith(".")


def _folders(folder: Path) -> list[Path]:
    """The folders inside, by name, without hidden ones."""
    return [item for item in sorted(folder.iterdir()) if item.is_dir() and not item.name.startswith(".")]
