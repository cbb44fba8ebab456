"""What each daemon's YAML may hold. Keys carry their unit; unknown keys are errors; every default is safe."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
Bytes = Annotated[int, Field(ge=0)]
KIB, MIB, GIB = 2**10, 2**20, 2**30


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def is_loopback(address: str) -> bool:
    """Whether `address` can only be reached from this machine."""
    if address == "localhost":
        return True
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


class Address(_Strict):
    """Where a receiver or the web listens."""

    address: str = "127.0.0.1"
    port: Port

    def __str__(self) -> str:
        """The address as people write it."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class TlsConfig(_Strict):
    """The certificate with which this host speaks, and the lab's CA that it believes."""

    certificate: Path
    key: Path
    authority: Path


class _Networked(_Strict):
    """Whatever opens a connection: plain sockets stay on loopback unless the owner insists."""

    tls: TlsConfig | None = None
    insecure_plaintext: bool = False

    def _far_addresses(self) -> list[str]:
        return []

    @model_validator(mode="after")
    def _plain_only_on_loopback(self) -> Self:
        far = [address for address in self._far_addresses() if not is_loopback(address)]
        if far and self.tls is None and not self.insecure_plaintext:
            raise ValueError(
                f"{', '.join(far)} is not on loopback: configure `tls:`, or set `insecure_plaintext: true` "
                "to send parameters unencrypted"
            )
        return self


class Limits(_Strict):
    """What a receiver takes from its peers; everything beyond is refused with a reason."""

    max_header_bytes: int = Field(256 * KIB, ge=1 * KIB, le=16 * MIB)
    max_json_bytes: Bytes = 4 * MIB
    max_parameter_bytes: Bytes = 8 * GIB
    max_testset_bytes: Bytes = 8 * GIB
    max_connections: int = Field(512, ge=1, le=100_000)
    max_connections_per_peer: int = Field(8, ge=1, le=100_000)
    idle_seconds: Seconds = 900
    handshake_seconds: Seconds = 10
    min_bytes_per_second: Bytes = 1024
    max_bytes_in_flight: Bytes = 64 * GIB
    max_files_in_flight: int = Field(384, ge=1, le=100_000)
    max_share_per_peer: float = Field(0.25, gt=0, le=1)
    min_free_bytes: Bytes = 256 * MIB
    min_free_bytes_for_json: Bytes = 1 * MIB
    keep_partial_seconds: Seconds = 86_400
    threads: int = Field(4, ge=1, le=64)


class Peer(_Strict):
    """Somebody who may send files to this receiver."""

    name: Name
    role: Literal["server", "client", "web"]


class ReceiverConfig(_Networked):
    """`receiver.yml`: the daemon that takes files from peers and puts them into the spool."""

    name: Name
    role: Literal["server", "client"]
    listen: Address
    spool: Path
    peers: list[Peer] = Field(min_length=1)
    limits: Limits = Limits()

    def _far_addresses(self) -> list[str]:
        return [self.listen.address]

    @model_validator(mode="after")
    def _peers_make_sense(self) -> Self:
        names = [peer.name for peer in self.peers]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"peers: {', '.join(double)} stands more than once")
        return self


class NodeAddress(_Strict):
    """A node and where its receiver listens."""

    name: Name
    address: str = "127.0.0.1"
    port: Port = 9002

    def __str__(self) -> str:
        """The node with its address, for messages."""
        return f"{self.name} ({self.address}:{self.port})"


class Retention(_Strict):
    """Which old checkpoints go; what goes is logged and noted at the task."""

    keep_days: Seconds | None = Field(None, le=36_500)
    keep_tasks: int | None = Field(None, ge=1)


class _Database(_Strict):
    database: str = Field("sqlite:////var/lib/fedsim/fedsim.db", description="An SQLAlchemy URL without a password")
    database_password_file: Path | None = None


class ServerConfig(_Database, _Networked):
    """`server.yml`: the daemon that leads the tasks."""

    name: Name = "server"
    spool: Path = Path("/var/lib/fedsim/server")
    data: Path | None = None
    datasets: list[DataSetConfig] = []
    nodes: list[NodeAddress] = Field(min_length=1)
    node_timeout_seconds: Seconds = 35
    poll_seconds: Seconds = Field(5, le=300)
    max_running_tasks: int = Field(1, ge=1, le=1000)
    threads_per_worker: int = Field(1, ge=1, le=256)
    max_worker_restarts: int = Field(3, ge=0, le=100)
    min_free_bytes: Bytes = Field(64 * MIB, description="Room on the disk after which a host that was full goes on")
    retention: Retention = Retention()

    def _far_addresses(self) -> list[str]:
        return [node.address for node in self.nodes]

    @model_validator(mode="after")
    def _nodes_are_distinct(self) -> Self:
        names = [node.name for node in self.nodes]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"nodes: {', '.join(double)} stands more than once")
        return self


class DataSetConfig(_Strict):
    """A data set in the `data` folder: a file or a folder, and how to read it."""

    name: Name
    path: Path = Field(description="Relative to the data folder")
    test_path: Path | None = Field(None, description="Where the test set is a file of its own")
    format: str | None = Field(
        None, description="idx, npz, csv, digits, cifar10 or an installed one; else by its files"
    )
    share: bool = Field(False, description="Whether the test set may be sent to the server")
    label_column: str | None = None
    id_column: str | None = None
    scale: Literal["none", "standard", "minmax"] = "none"
    scale_values: dict[str, tuple[float, float]] | None = Field(
        None, description="Given scaling: column -> (subtract, divide by)"
    )
    missing: Literal["error", "drop", "mean"] = "error"
    labels: dict[str, int] | None = Field(None, description="Label in the file -> class number")
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Where there is no test set: this share of the examples, by their order's hash"
    )

    @model_validator(mode="after")
    def _inside_the_data_folder(self) -> Self:
        for path in (self.path, self.test_path):
            if path is not None and (path.is_absolute() or ".." in path.parts):
                raise ValueError(f"{path}: must lie inside the data folder")
        return self


class Institution(_Strict):
    """What the owner of the data allows; a task beyond it is refused with the reason."""

    models: list[Name] | None = Field(None, description="Models that may be trained here; null: every installed one")
    min_examples: int = Field(1, ge=1, description="Least number of examples behind an update that leaves")
    min_privacy_level: Literal["none", "secure_aggregation", "differential_privacy"] = "none"


class ClientConfig(_Networked):
    """`client.yml`: the daemon that trains on this node's data."""

    name: Name
    server: Address
    server_name: Name = Field("server", description="The name that the server's receiver tells")
    spool: Path = Path("/var/lib/fedsim/client")
    data: Path = Path("/var/lib/fedsim/client/data")
    datasets: list[DataSetConfig] = Field(min_length=1)
    clients: int = Field(100, ge=1, le=1_000_000, description="How many clients this node can stand for")
    institution: Institution = Institution()
    announce_seconds: Seconds = 10
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = Field(1, ge=1, le=256)
    threads_per_worker: int = Field(1, ge=1, le=256)
    max_worker_restarts: int = Field(3, ge=0, le=100)
    min_free_bytes: Bytes = Field(64 * MIB, description="Room on the disk after which a host that was full goes on")
    keep_models: int = Field(20, ge=1, description="Final models of this many tasks stay on this node")

    def _far_addresses(self) -> list[str]:
        return [self.server.address]

    @model_validator(mode="after")
    def _data_sets_are_distinct(self) -> Self:
        names = [dataset.name for dataset in self.datasets]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"datasets: {', '.join(double)} stands more than once")
        return self


class WebConfig(_Database, _Networked):
    """`web.yml`: the pages and the JSON API."""

    name: Name = "web"
    listen: Address = Address(port=8080)
    server: Address = Address(port=9001)
    server_name: Name = Field("server", description="The name that the server's receiver tells")
    checkpoints: Path = Path("/var/lib/fedsim/server/checkpoints")
    registration: Literal["open", "approval", "closed"] = "approval"
    node_timeout_seconds: Seconds = Field(35, description="A node unheard of for so long is shown as offline")
    session_hours: Annotated[float, Field(gt=0, le=8760)] = 12
    login_attempts: int = Field(10, ge=1, description="Failed log-ins of a name or address before it must wait")
    login_window_seconds: Seconds = 900
    secure_cookies: bool = Field(True, description="Send cookies over HTTPS only (plain loopback works as well)")
    behind_proxy: bool = Field(False, description="Believe X-Forwarded-For and -Proto of a proxy on this machine")
    threads: int = Field(8, ge=1, le=256)

    def _far_addresses(self) -> list[str]:
        return [self.server.address]


ServerConfig.model_rebuild()
