"""The plug-in under test, and how a check reports what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import plugins
from fedsim.learning.examples import DataSet, Examples
from fedsim.learning.simulate import simulate
from fedsim.plugin_settings import options_setting
from fedsim.settings import TaskSettings

NAME = "conformance_candidate"
NUM_CLASSES = 3


@dataclass(frozen=True)
class Candidate:
    """A plug-in under test.

    Attributes:
        plugin: the class.
        options: values for its options; the others have their defaults.
        feature_shape: of the examples for a model.
        sample: a file or folder that a data format reads; None: it reads none.
        dataset: keys of a data set in `client.yml` with which a data format reads the sample.
    """

    plugin: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    feature_shape: tuple[int, ...] = (28, 28)
    sample: Path | None = None
    dataset: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The class with its module."""
        return f"{self.plugin.__module__}:{self.plugin.__qualname__}"

    def make(self) -> Any:
        """A new instance with the options."""
        return self.plugin(self.plugin.Options.model_validate(dict(self.options)))

    @contextmanager
    def installed(self, group: str) -> Iterator[str]:
        """Offer the plug-in to tasks in this process; returns the name under which they find it."""
        with plugins.registered(group, EntryPoint(NAME, str(self), group)):
            yield NAME


@dataclass(frozen=True)
class Check:
    """One promise that a plug-in must keep; call it with the plug-in."""

    function: Callable[[Candidate], None]

    def __str__(self) -> str:
        """Its name."""
        return self.function.__name__

    def __call__(self, candidate: Candidate) -> None:
        """Run the check; raises `AssertionError` with the reason if the plug-in fails it."""
        try:
            self.function(candidate)
        except Exception as error:
            reason = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{candidate} fails {self}: {reason}") from error


def require(condition: object, problem: str) -> None:
    """Raise `AssertionError` with the problem unless the condition holds."""
    if not condition:
        raise AssertionError(problem)


def small_data(feature_shape: tuple[int, ...] = (6,), count: int = 72) -> DataSet:
    """A data set of three classes whose means differ and that names six clients, the same in each call."""
    rng = np.random.default_rng(11)
    labels = np.arange(count, dtype=np.int64) % NUM_CLASSES
    features = rng.normal(size=(count, *feature_shape)).astype(np.float32)
    features += labels.reshape(-1, *[1] * len(feature_shape)).astype(np.float32)
    return DataSet(Examples(features, labels, clients=np.arange(count, dtype=np.int64) % 6), None, NUM_CLASSES)


def require_reproducible_task(
    candidate: Candidate,
    group: str,
    setting: str,
    *,
    data: DataSet | None = None,
    network: Callable[[tuple[int, ...], int], Any] | None = None,
    **settings: Any,
) -> None:
    """Train two rounds with the plug-in, twice, and require the same digest.

    Args:
        candidate: the plug-in.
        group: its group of entry points.
        setting: that names it.
        data: to train on; None: a small data set of classes.
        network: makes the model instead of the one that the settings name.
        settings: others of the task.
    """
    usual = {"model": "logistic", "partition": "iid", "num_clients": 6, "fraction_train": 1.0, "local_epochs": 1}
    chosen = {**usual, "num_rounds": 2, **settings}
    if data is None:
        data = small_data(candidate.feature_shape, 12) if group == plugins.MODELS else small_data()
    with candidate.installed(group) as name:
        chosen |= {setting: name, options_setting(setting): dict(candidate.options)}
        task = TaskSettings(**chosen)
        one, two = (simulate(task, data, chunk_clients=2, model=network) for _ in range(2))
    require(one.digest == two.digest, "the same task, trained twice, gave two different models")
