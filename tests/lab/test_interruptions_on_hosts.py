"""A deployment to bare hosts that is interrupted at twenty places, one after the other, ends in a working lab.

It deploys to bare hosts, so it runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from deployment import Deployment
from image import bare_image
from laboratory import Laboratory

pytestmark = [pytest.mark.long, pytest.mark.timeout(1700)]
PLACES = 20
TWO = ("server", "node-a")


@pytest.fixture(scope="module")
def laboratory(requirements: None) -> Iterator[Laboratory]:  # noqa: ARG001 - checked first
    """Two bare hosts."""
    with Laboratory.planned(dict.fromkeys(TWO, bare_image())) as laboratory:
        laboratory.boot()
        yield laboratory


@pytest.fixture(scope="module")
def two_hosts(laboratory: Laboratory) -> Deployment:
    """Their control machine."""
    return Deployment.of(laboratory)


def test_interrupted_deployments_end_in_a_working_lab(two_hosts: Deployment) -> None:
    lab = two_hosts
    last = lab.tasks_of("site.yml")
    for place in range(1, PLACES + 1):
        # Each run continues with what the one before it has left.
        lab.interrupted("site.yml", max(1, last * place // PLACES))
    lab.play("site.yml")
    assert lab.outdated(TWO) == {}
    assert lab.changes("site.yml") == 0
    lab.first_log_in()
    lab.completed(lab.submit())


def test_interrupted_changes_of_a_working_lab_are_completed_by_the_next_run(two_hosts: Deployment) -> None:
    lab = two_hosts
    last = lab.tasks_of("site.yml")
    for number in range(2, 2 + PLACES, 4):
        changed = lab.changed_everywhere(number)
        lab.interrupted("site.yml", max(1, last * number // (PLACES + 2)), **changed)
        lab.play("site.yml", **changed)
        assert lab.outdated(TWO) == {}
    lab.completed(lab.submit())
