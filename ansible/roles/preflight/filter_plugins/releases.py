"""A filter: what prevents a host from being deployed because of its system."""

from __future__ import annotations

from collections.abc import Callable, Collection

from fedsim_fleet.releases import release_problem


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[[str, Collection[str]], str]]:
        """The filters of this file."""
        return {"release_problem": release_problem}
