"""Plain text as sequences of characters, for the objective `next_token`.

An example is a window of `length` characters, its target the same window one character further; windows do not overlap.
Character number i of the alphabet is symbol i + 1. Symbol 0 is any other character, and the padding of a window that is
too short. The alphabet is stated, never collected from a file, so that symbols mean the same on every node.
"""

from __future__ import annotations

import re
import string
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from fedsim.config.models import DataSetConfig
from fedsim.data.formats import Format
from fedsim.data.split import some_examples
from fedsim.data_schema import MAX_ALPHABET, DataSchema
from fedsim.errors import BadInput
from fedsim.learning.examples import DataSet, Examples, IntArray, numbered
from fedsim.plugins import PluginOptions

ALPHABET = "\n" + " " + string.digits + string.ascii_letters + string.punctuation
MAX_UNKNOWN_SHARE = 0.05
SHOWN_CHARACTERS = 10
SPEAKER = re.compile(r"(\S.*?)\s*:\s*")


class PlainText(Format):
    """A text file, or a folder of .txt files of one client each; only `format: text` selects it.

    With `speakers` a file is a play: each speech begins with a line that has the speaker's name and a colon, and ends
    with an empty line. Each speaker is a client, whose speeches are joined in their order.
    """

    title = "text – characters, to predict what follows"
    uses_test_path = True

    class Options(PluginOptions):
        """How the text becomes examples."""

        length: int = Field(80, ge=1, le=10_000, title="length", description="Characters of an example")
        alphabet: str = Field(
            "",
            max_length=MAX_ALPHABET,
            title="alphabet",
            description="Characters with symbols of their own, the same on every node; empty: line end, space, digits, "
            "letters and punctuation of ASCII",
        )
        speakers: bool = Field(
            False, title="speakers", description="Whether it is a play, `NAME:` before each speech; each is a client"
        )
        padding: bool = Field(
            False,
            title="padding",
            description="Whether the rest of a text, which is shorter than an example, becomes one, padded with "
            "symbol 0, which is then predicted as well",
        )

        @field_validator("alphabet")
        @classmethod
        def _each_once(cls, alphabet: str) -> str:
            if len(set(alphabet)) < len(alphabet):
                raise ValueError("must have each character once")
            return alphabet

    options: Options

    @property
    def _alphabet(self) -> str:
        return self.options.alphabet or ALPHABET

    def detect(self, path: Path) -> bool:  # noqa: ARG002 - a text file can be anything
        """Never."""
        return False

    def load(self, config: DataSetConfig, path: Path, test_path: Path | None) -> DataSet:
        """Symbols [n, length], uint8 up to 256 symbols; of `test_share` each client's last examples are tested on."""
        train, test = self._read(path), None if test_path is None else self._read(test_path)
        if test is None and config.test_share is not None:
            train, test = _last_of_each(train, config.test_share, f"data set {config.name}: {path}")
        schema = DataSchema(kind="text", alphabet=self._alphabet, targets="tokens")
        return DataSet(train, test, len(self._alphabet) + 1, schema)

    def _read(self, path: Path) -> Examples:
        if path.is_dir():
            texts = {file.name: _text(file) for file in sorted(path.glob("*.txt"))}
            if not texts:
                raise BadInput(f"{path}: the folder has no file that ends in .txt")
        elif self.options.speakers:
            texts = _speeches(path)
        else:
            texts = {"": _text(path)}
        windows = {name: self._windows(text, path) for name, text in texts.items()}
        rows = np.concatenate(list(windows.values()))
        if not len(rows):
            raise BadInput(
                f"{path}: no text has the {self.options.length + 1} characters of an example: choose a smaller `length`"
                " or `padding: true`"
            )
        clients = None
        if path.is_dir() or self.options.speakers:
            clients = numbered(np.repeat(list(windows), list(map(len, windows.values()))))
        symbols = rows[:, :-1].astype(np.uint8 if len(self._alphabet) < 256 else np.float32)
        return Examples(symbols, rows[:, 1:].astype(np.int64), targets="tokens", clients=clients)

    def _windows(self, text: str, path: Path) -> IntArray:
        """The windows of a text, int64 [n, length + 1]: the last symbol of each is the first one of the next."""
        length = self.options.length
        symbols = self._symbols(text, path)
        whole, rest = divmod(max(len(symbols) - 1, 0), length)
        if self.options.padding and rest:
            whole += 1
            symbols = np.pad(symbols, (0, whole * length + 1 - len(symbols)))
        if not whole:
            return np.zeros((0, length + 1), np.int64)
        return np.lib.stride_tricks.sliding_window_view(symbols, length + 1)[: whole * length : length].copy()

    def _symbols(self, text: str, path: Path) -> IntArray:
        """The symbols of a text, int64 [characters]; `BadInput` if many characters are not in the alphabet."""
        known = _points(self._alphabet)
        order = np.argsort(known)
        points = _points(text)
        at = np.minimum(np.searchsorted(known, points, sorter=order), len(known) - 1)
        found = known[order[at]] == points
        others = sorted(set(np.unique(points[~found]).tolist()))
        if (~found).sum() > MAX_UNKNOWN_SHARE * len(points):
            shown = ", ".join(repr(chr(point)) for point in others[:SHOWN_CHARACTERS])
            raise BadInput(
                f"{path}: {(~found).sum()} of {len(points)} characters are not in the alphabet, such as {shown}: set "
                "`alphabet` to the characters of the text, the same on every node"
            )
        return np.where(found, order[at] + 1, 0)


def _points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _text(path: Path) -> str:
    """The text of a file; a line ends with one character."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: at byte {error.start}: not UTF-8 text; save it as UTF-8") from error


def _speeches(path: Path) -> dict[str, str]:
    """What each speaker of a play says, by the name. A speech without a name is the last speaker's."""
    said: dict[str, list[str]] = {}
    speaker, begins = None, True
    for number, line in enumerate(_text(path).split("\n"), 1):
        if begins and (named := SPEAKER.fullmatch(line)):
            speaker, begins = named[1], False
        elif not line.strip():
            begins = True
        elif speaker is None:
            raise BadInput(
                f"{path}: line {number}: a play begins with a speaker, `NAME:` on a line of its own; without `speakers`"
                " it is read as one text"
            )
        else:
            said.setdefault(speaker, []).append(f"{line}\n")
            begins = False
    if not said:
        raise BadInput(f"{path}: found no speech; a line `NAME:` comes before each one")
    return {name: "".join(lines) for name, lines in said.items()}


def _last_of_each(examples: Examples, share: float, source: str) -> tuple[Examples, Examples]:
    """Keep the last `share` of each client's examples for testing, as McMahan et al. 2017 do with Shakespeare."""
    clients = np.zeros(len(examples), np.int64) if examples.clients is None else examples.clients
    sizes = np.bincount(clients)
    order = np.argsort(clients, kind="stable")
    place = np.empty(len(examples), np.int64)
    place[order] = np.arange(len(examples)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    tested = place >= (sizes - np.round(sizes * share).astype(np.int64))[clients]
    if tested.all() or not tested.any():
        raise BadInput(f"{source}: test_share {share} of each client's examples leaves none for training or testing")
    train = some_examples(examples, np.flatnonzero(~tested))
    return train, some_examples(examples, np.flatnonzero(tested))
