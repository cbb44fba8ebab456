"""What holds for every test: one Hypothesis profile, how many seeds, and an installation without remains of 0.1."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import distributions

import pytest
from hypothesis import HealthCheck, settings

# Files of tests run side by side, each on a processor: torch's threads would wait for each other. It reads this when it
# is imported; workers of daemons and tests of several threads set the number themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: a machine under load is slow, and that is no failure. CI draws the same examples each time, so that a red
# run means a change; the long tier draws many more.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("long", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "default"))


DISASTERS = 30


def pytest_addoption(parser: pytest.Parser) -> None:
    """The long tier takes more seeds of the simulated disasters."""
    parser.addoption("--seeds", type=int, default=DISASTERS, help="how many seeds of a simulated disaster are tried")


@pytest.fixture(scope="session")
def seeds(request: pytest.FixtureRequest) -> range:
    """The seeds of simulated disasters."""
    return range(request.config.getoption("--seeds"))


def pytest_sessionstart() -> None:
    """Refuse an environment in which 0.1 is still installed: both would register the same plug-ins."""
    if any(distribution.name == "fedsim" for distribution in distributions()):
        raise pytest.UsageError(
            "the distribution `fedsim` (0.1, renamed to fedsim-lab) is still installed and registers the same models: "
            "run `rm -rf fedsim.egg-info; .venv/bin/pip uninstall --yes fedsim; .venv/bin/pip install --no-deps -e .`"
        )


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
