"""scikit-learn's digits: 1,797 images of 8x8 that are always installed, for demonstrations and tests."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from fedsim.config.models import DataSetConfig
from fedsim.data.formats import Format
from fedsim.data.split import split_off_test
from fedsim.errors import BadInput
from fedsim.learning.examples import DataSet, Examples

NUM_CLASSES = 10
BRIGHTEST = 16.0
TEST_SHARE = 0.2


class Digits(Format):
    """The digits that are part of scikit-learn; `path` is ignored, and only `format: digits` selects them."""

    title = "digits – images that scikit-learn provides"

    def detect(self, path: Path) -> bool:  # noqa: ARG002 - there is no file to detect
        """Never."""
        return False

    def load(self, config: DataSetConfig, path: Path, test_path: Path | None) -> DataSet:  # noqa: ARG002
        """Pixels uint8 [n, 8, 8], scale 16; a fifth, or `test_share`, is the test set, the same on every host."""
        # Rows of 64 pixels and the digit; importing scikit-learn to read them would take twenty times as long.
        rows = np.loadtxt(_file(), dtype=np.uint8, delimiter=",")
        features, labels = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
        whole = DataSet(Examples(features, labels, BRIGHTEST), None, NUM_CLASSES)
        return split_off_test(whole, config.test_share or TEST_SHARE, "digits")


def _file() -> Path:
    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise BadInput("scikit-learn, which contains the digits, is not installed")
    return Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
