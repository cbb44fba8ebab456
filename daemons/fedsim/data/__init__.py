"""Data sets: reads the files in a node's `data` folder into arrays, and explains errors in malformed files.

This package is independent of training and never imports torch.
"""

from fedsim.data.load import arrays_to_examples, inspect_dataset, load_dataset, load_features
from fedsim.learning.examples import DataSet, Examples

__all__ = ["DataSet", "Examples", "arrays_to_examples", "inspect_dataset", "load_dataset", "load_features"]
