"""scikit-learn's digits: 1,797 images of 8x8 that are always at hand, for demonstrations and tests."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from fedsim.config.models import DataSetConfig
from fedsim.data.split import split_off_test
from fedsim.learning.examples import DataSet, Examples

NUM_CLASSES = 10
BRIGHTEST = 16.0
TEST_SHARE = 0.2


class Digits:
    """The digits that scikit-learn brings along; `path` counts for nothing, and only `format: digits` chooses them."""

    options: ClassVar[frozenset[str]] = frozenset()

    def detect(self, path: Path) -> bool:  # noqa: ARG002 - there is no file to know them by
        """Never."""
        return False

    def load(self, config: DataSetConfig, path: Path, test_path: Path | None) -> DataSet:  # noqa: ARG002
        """Pixels uint8 [n, 8, 8], scale 16; a fifth, or `test_share`, is for testing, the same everywhere."""
        from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import, and nothing else here needs it

        images, labels = load_digits(return_X_y=True)
        features = images.reshape(-1, 8, 8).astype(np.uint8)
        whole = DataSet(Examples(features, labels.astype(np.int64), BRIGHTEST), None, NUM_CLASSES)
        return split_off_test(whole, config.test_share or TEST_SHARE, "digits")
