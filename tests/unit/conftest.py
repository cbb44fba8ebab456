"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def deterministic_torch() -> Iterator[None]:
    """Torch as in a worker, on one thread; afterwards as it was."""
    import torch  # noqa: PLC0415 - takes seconds, and most tests do without

    from fedsim.learning.engine import make_deterministic  # noqa: PLC0415 - with torch

    threads = torch.get_num_threads()
    make_deterministic(1)
    yield
    torch.set_deterministic_debug_mode("default")
    torch.set_num_threads(threads)
