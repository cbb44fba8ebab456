"""What each daemon's YAML may hold. Keys carry their unit; unknown keys are errors; every default is safe."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, IPvAnyNetwork, ValidationInfo

from fedsim.config.database import checked_url
from fedsim.settings import FORMATS, MODELS, installed

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


def _absolute_or_a_name(path: Path) -> Path:
    if not path.is_absolute() and (path.parts != (path.name,) or path.name == ".."):
        raise ValueError(f"{path} must be an absolute path, or the bare name of a credential")
    return path


# See fedsim.config.secrets.
Secret = Annotated[Path, AfterValidator(_absolute_or_a_name)]


class TlsConfig(_Strict):
    """The certificate with which this host speaks, and the lab's CA that it believes."""

    certificate: Path
    key: Secret = Field(description="Absolute, or the name of a credential")
    authority: Path = Field(description="One or, while the authority changes, several certificates")
    revoked: Path | None = Field(None, description="The authority's list of revoked certificates")


class Measured(_Strict):
    """A daemon whose numbers Prometheus can fetch."""

    metrics: Address | None = Field(None, description="Where they are told, on loopback unless it says otherwise")


class _Networked(_Strict):
    """Whatever opens a connection. Its keys stand before all others, so that a Guarded address can look at them."""

    tls: TlsConfig | None = None
    insecure_plaintext: bool = False


class _Located(Protocol):
    @property
    def address(self) -> str: ...


class _Named(Protocol):
    @property
    def name(self) -> str: ...


# Checks stand at the field that they concern, also those that look at others: pydantic then tells all problems at once,
# each with its place. A validator of the whole model would be asked only after every field is right.


def _guard(addresses: Sequence[_Located], info: ValidationInfo) -> None:
    """Plain sockets stay on loopback unless the owner insists."""
    far = [item.address for item in addresses if not is_loopback(item.address)]
    unsure = "tls" not in info.data or "insecure_plaintext" not in info.data  # wrong themselves, and told so
    if far and not unsure and info.data["tls"] is None and not info.data["insecure_plaintext"]:
        raise ValueError(
            f"{', '.join(far)} is not on loopback: configure `tls:`, or set `insecure_plaintext: true` "
            "to send parameters unencrypted"
        )


def _guarded_address(address: Address, info: ValidationInfo) -> Address:
    _guard([address], info)
    return address


def _guarded_nodes(nodes: list[NodeAddress], info: ValidationInfo) -> list[NodeAddress]:
    _guard(nodes, info)
    return nodes


NamedList = TypeVar("NamedList", bound=Sequence[_Named])


def _distinct(items: NamedList) -> NamedList:
    names = [item.name for item in items]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ValueError(f"{', '.join(double)} stands more than once")
    return items


def _inside_the_data_folder(path: Path) -> Path:
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{path}: must lie inside the data folder")
    return path


def _guarded_pages(address: Address, info: ValidationInfo) -> Address:
    """`tls:` is for the way to the server's receiver; browsers get HTTPS from a proxy."""
    if not is_loopback(address.address) and info.data.get("insecure_plaintext") is False:
        raise ValueError(
            f"{address.address} is not on loopback: put a proxy with HTTPS before the web (`behind_proxy: true`), "
            "or set `insecure_plaintext: true` to send passwords unencrypted"
        )
    return address


def _one_of(group: str) -> AfterValidator:
    """A name that an installed package offers in this entry-point group."""

    def check(name: str) -> str:
        if name not in (known := installed(group)):
            raise ValueError(f"there is no {name!r}; there are {', '.join(known)}")
        return name

    return AfterValidator(check)


Guarded = Annotated[Address, AfterValidator(_guarded_address)]
DataPath = Annotated[Path, AfterValidator(_inside_the_data_folder)]


class Limits(_Strict):
    """What a receiver takes from its peers; everything beyond is refused with a reason."""

    max_header_bytes: int = Field(1 * MIB, ge=1 * KIB, le=16 * MIB)
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
    threads: int = Field(4, ge=2, le=64, description="One is always left for the connections")


class Peer(_Strict):
    """Somebody who may send files to this receiver."""

    name: Name
    role: Literal["server", "client", "web"]


class ReceiverConfig(Measured, _Networked):
    """`receiver.yml`: the daemon that takes files from peers and puts them into the spool."""

    name: Name
    role: Literal["server", "client"]
    listen: Guarded
    spool: Path
    peers: Annotated[list[Peer], AfterValidator(_distinct)] = Field(min_length=1)
    limits: Limits = Limits()


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
    database: Annotated[str, AfterValidator(checked_url)] = Field(
        "sqlite:////var/lib/fedsim/fedsim.db", description="An SQLAlchemy URL without a password"
    )
    database_password_file: Secret | None = Field(None, description="Absolute, or the name of a credential")


class ServerConfig(_Database, Measured, _Networked):
    """`server.yml`: the daemon that leads the tasks."""

    name: Name = "server"
    spool: Path = Path("/var/lib/fedsim/server")
    data: Path = Path("/var/lib/fedsim/server/data")
    datasets: Annotated[list[DataSetConfig], AfterValidator(_distinct)] = []
    nodes: Annotated[list[NodeAddress], AfterValidator(_distinct), AfterValidator(_guarded_nodes)] = Field(min_length=1)
    node_timeout_seconds: Seconds = 35
    poll_seconds: Seconds = Field(5, le=300)
    max_running_tasks: int = Field(1, ge=1, le=1000)
    threads_per_worker: int = Field(1, ge=1, le=256)
    max_worker_restarts: int = Field(3, ge=0, le=100)
    min_free_bytes: Bytes = Field(64 * MIB, description="Room on the disk after which a host that was full goes on")
    retention: Retention = Retention()


class DataSetConfig(_Strict):
    """A data set in the `data` folder: a file or a folder, and how to read it."""

    name: Name
    path: DataPath = Field(description="Relative to the data folder")
    test_path: DataPath | None = Field(None, description="Where the test set is a file of its own")
    format: Annotated[str, _one_of(FORMATS)] | None = Field(
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


class Institution(_Strict):
    """What the owner of the data allows; a task beyond it is refused with the reason."""

    models: list[Annotated[Name, _one_of(MODELS)]] | None = Field(
        None, description="Models that may be trained here; null: every installed one"
    )
    min_examples: int = Field(1, ge=1, description="Least number of examples behind an update that leaves")
    min_privacy_level: Literal["none", "secure_aggregation", "differential_privacy"] = "none"


class ClientConfig(Measured, _Networked):
    """`client.yml`: the daemon that trains on this node's data."""

    name: Name
    server: Guarded
    server_name: Name = Field("server", description="The name that the server's receiver tells")
    spool: Path = Path("/var/lib/fedsim/client")
    data: Path = Path("/var/lib/fedsim/client/data")
    datasets: Annotated[list[DataSetConfig], AfterValidator(_distinct)] = Field(min_length=1)
    clients: int = Field(100, ge=1, le=1_000_000, description="How many clients this node can stand for")
    institution: Institution = Institution()
    announce_seconds: Seconds = 10
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int = Field(1, ge=1, le=256)
    threads_per_worker: int = Field(1, ge=1, le=256)
    max_worker_restarts: int = Field(3, ge=0, le=100)
    min_free_bytes: Bytes = Field(64 * MIB, description="Room on the disk after which a host that was full goes on")
    keep_models: int = Field(20, ge=1, description="Final models of this many tasks stay on this node")


class WebConfig(_Database, _Networked):
    """`web.yml`: the pages and the JSON API."""

    name: Name = "web"
    listen: Annotated[Address, AfterValidator(_guarded_pages)] = Address(port=8080)
    server: Guarded = Address(port=9001)
    server_name: Name = Field("server", description="The name that the server's receiver tells")
    checkpoints: Path = Path("/var/lib/fedsim/server/checkpoints")
    registration: Literal["open", "approval", "closed"] = "approval"
    node_timeout_seconds: Seconds = Field(35, description="A node unheard of for so long is shown as offline")
    session_hours: Annotated[float, Field(gt=0, le=8760)] = 12
    login_attempts: int = Field(10, ge=1, description="Failed log-ins of a name or address before it must wait")
    login_window_seconds: Seconds = 900
    registrations_per_address: int = Field(20, ge=1, description="Registrations from an address before it must wait")
    registrations_overall: int = Field(200, ge=1, description="Registrations from anywhere before all must wait")
    registration_window_seconds: Seconds = 3600
    secure_cookies: bool = Field(True, description="Send cookies over HTTPS only (plain loopback works as well)")
    behind_proxy: bool = Field(False, description="Believe X-Forwarded-For and -Proto of a proxy on this machine")
    threads: int = Field(8, ge=1, le=256)
    request_timeout_seconds: Seconds = Field(20, description="A request must have come whole within so long")
    min_bytes_per_second: int = Field(1024, ge=1, description="A browser must take an answer at least so fast")
    metrics_to: list[IPvAnyNetwork] = Field(
        [ip_network("127.0.0.0/8"), ip_network("::1/128")], description="Who may read /metrics, as networks"
    )


ServerConfig.model_rebuild()
