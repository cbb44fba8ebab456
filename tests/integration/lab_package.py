"""A lab's own package, installed: models and formats as a user's, odd ones among them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MODULE = '''
import os
import signal

import numpy as np

from fedsim.data import DataSet, Examples
from fedsim.data.formats import Format
from fedsim.learning.models import Model


class Narrow(Model):
    def build(self, feature_shape, num_classes):
        from torch import nn

        inputs = int(np.prod(feature_shape))
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, num_classes))


class RaisingModel(Model):
    def build(self, feature_shape, num_classes):
        raise ValueError("seven is not a width")


class Double(Narrow):
    def build(self, feature_shape, num_classes):
        return super().build(feature_shape, num_classes).double()


class Striking(Narrow):
    """Gives up when it is really trained: the trial is of two examples."""

    def build(self, feature_shape, num_classes):
        from torch import nn

        class Strikes(nn.Sequential):
            def forward(self, features):
                if self.training and len(features) > 2:
                    raise RuntimeError("no more than two at a time")
                return super().forward(features)

        return Strikes(super().build(feature_shape, num_classes))


class Pair(Format):
    def detect(self, path):
        return (path / "features.npy").is_file()

    def load(self, config, path, test_path):
        features, labels = np.load(path / "features.npy"), np.load(path / "labels.npy")
        return DataSet(Examples(features, labels), Examples(features, labels), 10)


class Raising(Pair):
    def detect(self, path):
        return False

    def load(self, config, path, test_path):
        raise ValueError("a row is upside down")


class Killing(Raising):
    def load(self, config, path, test_path):
        os.kill(os.getpid(), signal.SIGKILL)


class HangingUp(Raising):
    """Closes the worker's connection, and lives."""

    def load(self, config, path, test_path):
        os.closerange(3, 256)
        signal.pause()


class Waiting(Raising):
    """A format that is not implemented."""

    def load(self, config, path, test_path):
        raise ValueError(path.read_text())
'''
WITH_TORCH = """
import torch
from fedsim.learning.models import Model


class Heavy(Model):
    ...
"""
ENTRY_POINTS = """
[fedsim.models]
narrow = our_lab:Narrow
raising = our_lab:RaisingModel
double = our_lab:Double
striking = our_lab:Striking
torch_at_the_top = our_lab_with_torch:Heavy
missing = our_lab_that_is_gone:model
a name with blanks = our_lab:Narrow

[fedsim.formats]
pair = our_lab:Pair
raising = our_lab:Raising
killing = our_lab:Killing
hanging_up = our_lab:HangingUp
waiting = our_lab:Waiting
"""


def install_our_lab(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the package for the processes that are started from now on."""
    install_package(folder, monkeypatch, "our_lab", MODULE, ENTRY_POINTS)
    (folder / "our_lab_with_torch.py").write_text(WITH_TORCH, encoding="utf-8")


def install_package(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, points: str) -> None:
    """Put a package of one module where Python finds it, as pip does, for the processes that start from now on."""
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / f"{name}.py").write_text(module, encoding="utf-8")
    metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n"
    (about / "METADATA").write_text(metadata, encoding="utf-8")
    (about / "entry_points.txt").write_text(points, encoding="utf-8")
    others = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *([others] if others else [])]))
