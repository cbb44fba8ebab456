"""Data sets: from the files in a node's `data` folder to arrays, with every malformed file named and explained.

Reads files, knows nothing of training; torch is never imported here.
"""

from fedsim.data.load import arrays_to_examples, inspect_dataset, load_dataset, load_features
from fedsim.learning.examples import DataSet, Examples

__all__ = ["DataSet", "Examples", "arrays_to_examples", "inspect_dataset", "load_dataset", "load_features"]
