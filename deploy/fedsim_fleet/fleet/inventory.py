"""Reads the hosts of a lab from the Ansible inventory, by Ansible itself, so that no second list is needed."""

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
# These variables must be plain text, because ansible-inventory does not evaluate templates.
_Plain = Annotated[str, StringConstraints(pattern=r"^[^{}\s]+$")]


class InventoryDataSet(BaseModel):
    """A data set of a node in the inventory: only what concerns its files."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    path: str
    format: str = ""


class Host(BaseModel):
    """A host of the inventory with its variables."""

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
    secrets: str = Field("", alias="fedsim_secrets")
    web_name: _Plain = Field("web", alias="fedsim_web_name")
    server_port: int = Field(9001, alias="fedsim_server_port")
    node_port: int = Field(9002, alias="fedsim_node_port")
    metrics_port: dict[str, int] = Field({"server": 9101, "client": 9103}, alias="fedsim_metrics_port")

    @property
    def reached_at(self) -> str:
        """The address, or the name if no address is set."""
        return self.address or self.name

    @property
    def receiver_port(self) -> int:
        """The port of its receiver."""
        return self.server_port if self.is_server else self.node_port


def read_inventory(path: Path) -> list[Host]:
    """Read the hosts: the server, then the nodes in the order of the inventory.

    Raises:
        NotThere: the file does not exist.
        BadInput: Ansible cannot read it, it has no hosts of fedsim, or a variable is invalid.
        Unavailable: Ansible is not installed in this environment.
    """
    if not path.exists():
        example = Path("ansible/inventory/example.yml")
        copy = f"copy {example} there and edit it; for another one " if path.name == "lab.yml" else ""
        raise NotThere(f"the inventory {path} does not exist: {copy}use --inventory, or set FEDSIM_INVENTORY")
    listed = _listed(path)
    variables = listed.get("_meta", {}).get("hostvars", {})
    hosts = []
    for group in (SERVER_GROUP, NODES_GROUP):
        for name in listed.get(group, {}).get("hosts", []):
            try:
                fields = {**variables.get(name, {}), "name": name, "is_server": group == SERVER_GROUP}
                hosts.append(Host.model_validate(fields))
            except ValidationError as error:
                problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
                raise BadInput(f"{path}: the host {name} has invalid variables: {problems}") from error
    if not hosts:
        raise BadInput(f"{path} has no hosts in the groups {SERVER_GROUP} and {NODES_GROUP}")
    if not all(host.units for host in hosts):
        raise BadInput(f"{path}: the group variables are not found; run this in the checkout of fedsim")
    return hosts


def secrets_of(inventory: Path, hosts: list[Host]) -> Path:
    """The folder with the lab's authority: `fedsim_secrets`, or else next to the inventory."""
    if hosts[0].secrets and "{{" not in hosts[0].secrets:
        return Path(hosts[0].secrets)
    path = inventory.resolve()
    return (path if path.is_dir() else path.parent) / "secrets"


def select_hosts(hosts: list[Host], names: tuple[str, ...]) -> list[Host]:
    """Return the hosts with these names, or all if there are none; `BadInput` for unknown names."""
    known = {host.name for host in hosts}
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"not in the inventory: {', '.join(unknown)} (available: {', '.join(sorted(known))})")
    return [host for host in hosts if not names or host.name in names]


def _playbooks(inventory: Path) -> Path:
    """The folder of the group variables: above the inventory's, in the current checkout, or in that of this file."""
    found = [inventory.resolve().parent.parent, Path("ansible"), Path(__file__).parents[3] / "ansible"]
    return next((folder for folder in found if (folder / "group_vars").is_dir()), found[1])


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
        raise Unavailable(f"{program} did not read {path} within {_SECONDS} s") from error
    if done.returncode:
        raise BadInput(f"Ansible cannot read {path}:\n{done.stderr.strip()}")
    listed: dict[str, Any] = json.loads(done.stdout)
    return listed
