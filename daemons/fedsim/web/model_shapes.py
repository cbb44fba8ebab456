"""The shapes of a model's parameters, from a short-lived process: the web itself never imports torch."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from threading import Lock

from fedsim.learning.initial_arrays import WantedArrays
from fedsim.log import get_logger
from fedsim.messages import ModelSpec

MAX_SECONDS = 60
MAX_KNOWN = 256
_one_at_a_time = Lock()


def model_shapes(spec: ModelSpec) -> WantedArrays | str | None:
    """The names and shapes of the arrays of a model.

    Returns:
        The problem as a text where there is no such model for this data; None where the shapes cannot be found here, so
        that only the start of the task shows whether something fits.
    """
    with _one_at_a_time:  # a process needs a second and some hundred megabytes
        return _described(spec.model_dump_json())


@lru_cache(MAX_KNOWN)
def _described(spec: str) -> WantedArrays | str | None:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "fedsim.learning.model_shapes"],
            input=spec,
            capture_output=True,
            text=True,
            timeout=MAX_SECONDS,
            check=True,
        )
        answer = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        get_logger().warning("model_not_described", problem=str(error))
        return None
    if "problem" in answer:
        return str(answer["problem"])
    shapes = answer["shapes"]
    if shapes is None:
        return None
    return WantedArrays({name: tuple(shape) for name, shape in shapes.items()}, frozenset(answer["others"]))
