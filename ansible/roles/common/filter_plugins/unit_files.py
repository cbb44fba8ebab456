"""A filter: the files of systemd/ and the limits of services, with the places that they have on a host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ansible.errors import AnsibleFilterError

PLACES = {
    "fedsim*.service": "/etc/systemd/system",
    "fedsim*.socket": "/etc/systemd/system",
    "fedsim.target": "/etc/systemd/system",
    "fedsim-.service.d/*.conf": "/etc/systemd/system/fedsim-.service.d",
    "sysusers.d/*.conf": "/etc/sysusers.d",
    "tmpfiles.d/*.conf": "/etc/tmpfiles.d",
}


LIMITS = ("MemoryMax", "TasksMax", "CPUWeight")


def unit_files(
    folder: str, services: Sequence[str] = (), resources: Mapping[str, Mapping[str, object]] | None = None
) -> list[dict[str, str]]:
    """The units, their drop-ins, and the definitions of users and folders, for the module `fedsim_files`.

    Each of the host's services has a drop-in with the limits that the inventory sets (`fedsim_resources`): none, unless
    it is named there.
    """
    files = [
        {"path": f"{place}/{path.name}", "content": path.read_text(encoding="utf-8")}
        for pattern, place in PLACES.items()
        for path in sorted(Path(folder).glob(pattern))
    ]
    return files + [_limits(service, (resources or {}).get(service) or {}) for service in services]


def _limits(service: str, limits: Mapping[str, object]) -> dict[str, str]:
    if unknown := sorted(set(limits) - set(LIMITS)):
        raise AnsibleFilterError(
            f"fedsim_resources: {service} has {', '.join(unknown)}; what can be set is {', '.join(LIMITS)}"
        )
    lines = [f"{name}={limits[name]}" for name in LIMITS if name in limits]
    head = "# Written by Ansible from the inventory; change it there (fedsim_resources)."
    return {
        "path": f"/etc/systemd/system/{service}.service.d/30-resources.conf",
        "content": "\n".join([head, "[Service]", *lines]) + "\n",
    }


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[[str], list[dict[str, str]]]]:
        """The filters of this file."""
        return {"unit_files": unit_files}
