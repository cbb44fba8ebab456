"""Which hosts a lab has: read from the Ansible inventory by Ansible itself, so that there is no second list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fedsim.errors import BadInput, NotThere, Unavailable

SERVER_GROUP, NODES_GROUP = "fedsim_server", "fedsim_nodes"
DATA = PurePosixPath("/var/lib/fedsim/client/data")
_SECONDS = 60
# A template would need Ansible's whole engine; these few must be plain.
_Plain = Annotated[str, StringConstraints(pattern=r"^[^{}\s]+$")]


class InventoryDataSet(BaseModel):
    """One of a node's data sets, as far as it concerns files."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    path: str
    format: str = ""


class Host(BaseModel):
    """A host of the inventory, and what its variables say."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    is_server: bool
    address: _Plain = Field("", alias="ansible_host", validate_default=False)
    port: int | None = Field(None, alias="ansible_port", ge=1, le=65535)
    user: _Plain | None = Field(None, alias="ansible_user")
    key_file: str | None = Field(None, alias="ansible_ssh_private_key_file")
    become: bool = Field(default=False, alias="ansible_become")
    units: tuple[str, ...] = Field((), alias="fedsim_services")
    datasets: tuple[InventoryDataSet, ...] = Field((), alias="fedsim_datasets")
    server_port: int = Field(9001, alias="fedsim_server_port")
    node_port: int = Field(9002, alias="fedsim_node_port")
    metrics_port: dict[str, int] = Field({"server": 9101, "client": 9103}, alias="fedsim_metrics_port")

    @property
    def reached_at(self) -> str:
        """What its address is looked up by."""
        return self.address or self.name

    @property
    def receiver_port(self) -> int:
        """Where its receiver listens."""
        return self.server_port if self.is_server else self.node_port


def read_inventory(path: Path) -> list[Host]:
    """The server's host, then the nodes in the order of the inventory.

    Raises:
        NotThere: there is no such file.
        BadInput: Ansible cannot read it, it has no hosts of fedsim, or a variable is no plain value.
        Unavailable: Ansible is not installed beside this command.
    """
    if not path.exists():
        raise NotThere(f"there is no inventory {path}: name it with --inventory, or set FEDSIM_INVENTORY")
    listed = _listed(path)
    variables = listed.get("_meta", {}).get("hostvars", {})
    hosts = []
    for group in (SERVER_GROUP, NODES_GROUP):
        for name in listed.get(group, {}).get("hosts", []):
            try:
                told = {**variables.get(name, {}), "name": name, "is_server": group == SERVER_GROUP}
                hosts.append(Host.model_validate(told))
            except ValidationError as error:
                problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
                raise BadInput(f"{path}: the host {name} has variables that cannot be used: {problems}") from error
    if not hosts:
        raise BadInput(f"{path} has no hosts in the groups {SERVER_GROUP} and {NODES_GROUP}")
    if not all(host.units for host in hosts):
        raise BadInput(f"{path}: the group variables are not found; call this in the checkout of fedsim")
    return hosts


def chosen(hosts: list[Host], names: tuple[str, ...]) -> list[Host]:
    """The hosts of these names, or all; `BadInput` names those that there are not."""
    known = {host.name for host in hosts}
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"not in the inventory: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [host for host in hosts if not names or host.name in names]


def _playbooks(inventory: Path) -> Path:
    """Where group variables lie: the folder above the inventory's, else that of the checkout in which we are."""
    above = inventory.resolve().parent.parent
    return above if (above / "group_vars").is_dir() else Path("ansible")


def _listed(path: Path) -> dict[str, Any]:
    program = Path(sys.executable).with_name("ansible-inventory")
    command = [str(program), "--list", "--inventory", str(path), "--playbook-dir", str(_playbooks(path))]
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(_playbooks(path) / "ansible.cfg"),
                "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true",
            },
        )
    except FileNotFoundError as error:
        raise Unavailable(f"{program} is not installed: pip install 'fedsim-lab[fleet]'") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{program} has not read {path} in {_SECONDS} s") from error
    if done.returncode:
        raise BadInput(f"Ansible cannot read {path}:\n{done.stderr.strip()}")
    listed: dict[str, Any] = json.loads(done.stdout)
    return listed
