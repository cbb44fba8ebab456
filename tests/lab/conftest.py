"""The laboratory of the tests: it boots once and is shared; a test leaves its hosts running and reachable."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import Deployment
from laboratory import Laboratory
from presence import missing

PATIENCE_SECONDS = 1200
PROGRAMS = ["age", "debootstrap", "systemd-nspawn", "nsenter", "ip", "ssh", "ssh-keygen"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests in this folder need the laboratory; its hosts are bare until the first test that uses a lab.

    That one waits until the lab is deployed.
    """
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.lab)
            item.add_marker(pytest.mark.timeout(PATIENCE_SECONDS))
    items.sort(key=lambda item: "deployment" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def requirements() -> None:
    """Skip what needs hosts where none can be booted."""
    if sys.platform != "linux" or os.geteuid() != 0:
        missing("hosts are booted by root on Linux only")
    if lacking := [name for name in PROGRAMS if shutil.which(name) is None]:
        missing(f"not installed: {', '.join(lacking)}; `make system-packages` installs them")


@pytest.fixture(scope="session")
def laboratory(requirements: None) -> Iterator[Laboratory]:  # noqa: ARG001 - checked first
    """Three bare hosts, booted, and a control process in their network."""
    with Laboratory.planned() as laboratory:
        laboratory.boot()
        yield laboratory


@pytest.fixture(scope="session")
def deployment(laboratory: Laboratory) -> Deployment:
    """The lab that site.yml makes of the bare hosts; later tests find what earlier ones have left."""
    deployment = Deployment.of(laboratory)
    deployment.play("site.yml")
    deployment.first_log_in()
    return deployment
