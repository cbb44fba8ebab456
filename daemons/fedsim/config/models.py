"""What each daemon's YAML may hold. Keys carry their unit; unknown keys are errors; every default is safe."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, IPvAnyNetwork, ValidationInfo

from fedsim import plugins
from fedsim.config.database import checked_url
from fedsim.plugins import ENGINES, FORMATS, MODELS

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

    address: str = Field("127.0.0.1", description="IP address or host name")
    port: Port = Field(description="TCP port")

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

    certificate: Path = Field(description="This host's certificate, with its name and role")
    key: Secret = Field(description="Its private key: an absolute path, or the name of a credential")
    authority: Path = Field(description="The authority's certificate; several while the authority changes")
    revoked: Path | None = Field(None, description="List of revoked certificates, one for each authority")


class Measured(_Strict):
    """A daemon whose numbers Prometheus can fetch."""

    metrics: Address | None = Field(None, description="Where Prometheus fetches metrics; without it there are none")


class _Networked(_Strict):
    """Whatever opens a connection. Its keys stand before all others, so that a Guarded address can look at them."""

    tls: TlsConfig | None = Field(None, description="Certificates; required for connections beyond loopback")
    insecure_plaintext: bool = Field(False, description="Allow unencrypted connections beyond loopback")


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
        if name not in plugins.names(group):
            raise ValueError(plugins.unknown(group, name))
        return name

    return AfterValidator(check)


Guarded = Annotated[Address, AfterValidator(_guarded_address)]
DataPath = Annotated[Path, AfterValidator(_inside_the_data_folder)]


class Limits(_Strict):
    """What a receiver takes from its peers; everything beyond is refused with a reason."""

    max_header_bytes: int = Field(1 * MIB, ge=1 * KIB, le=16 * MIB, description="Largest header of a frame")
    max_json_bytes: Bytes = Field(4 * MIB, description="Largest JSON message")
    max_parameter_bytes: Bytes = Field(8 * GIB, description="Largest file of parameters")
    max_testset_bytes: Bytes = Field(8 * GIB, description="Largest file of a test set")
    max_connections: int = Field(512, ge=1, le=100_000, description="Open connections")
    max_connections_per_peer: int = Field(8, ge=1, le=100_000, description="Open connections of one peer")
    idle_seconds: Seconds = Field(900, description="A connection without transfers is closed after this time")
    handshake_seconds: Seconds = Field(
        10, description="Time for the handshake, for each header, and for slow bodies in total"
    )
    min_bytes_per_second: Bytes = Field(1024, description="Slower bodies count as stalled")
    max_bytes_in_flight: Bytes = Field(64 * GIB, description="Bytes of all files being received")
    max_files_in_flight: int = Field(384, ge=1, le=100_000, description="Files being received")
    max_share_per_peer: float = Field(
        0.25, gt=0, le=1, description="Share of these limits, and of the free disk space, that one peer may use"
    )
    min_free_bytes: Bytes = Field(256 * MIB, description="Disk space that files of parameters must leave free")
    min_free_bytes_for_json: Bytes = Field(1 * MIB, description="Disk space that JSON messages must leave free")
    keep_partial_seconds: Seconds = Field(86_400, description="Partly received files are kept this long for resuming")
    threads: int = Field(4, ge=2, le=64, description="Threads; one is always left for the connections")


class Peer(_Strict):
    """Somebody who may send files to this receiver."""

    name: Name = Field(description="Name in the peer's certificate")
    role: Literal["server", "client", "web"] = Field(description="Role in the peer's certificate")


class ReceiverConfig(Measured, _Networked):
    """`receiver.yml`: the daemon that takes files from peers and puts them into the spool."""

    name: Name = Field(description="Name of this host, as in its certificate")
    role: Literal["server", "client"] = Field(description="What runs on this host: the server, or a node")
    listen: Guarded = Field(description="Where it listens")
    spool: Path = Field(description="Where files arrive; the same folder as the daemon's")
    peers: Annotated[list[Peer], AfterValidator(_distinct)] = Field(
        min_length=1, description="Who may send files to this receiver"
    )
    limits: Limits = Field(Limits(), description="What it accepts; everything beyond is refused with a reason")


class NodeAddress(_Strict):
    """A node and where its receiver listens."""

    name: Name = Field(description="Name in the node's certificate")
    address: str = Field("127.0.0.1", description="Where its receiver listens")
    port: Port = Field(9002, description="Port of its receiver")

    def __str__(self) -> str:
        """The node with its address, for messages."""
        return f"{self.name} ({self.address}:{self.port})"


class Retention(_Strict):
    """Which old checkpoints go; what goes is logged and noted at the task."""

    keep_days: Seconds | None = Field(None, le=36_500, description="Remove checkpoints of tasks older than this")
    keep_tasks: int | None = Field(None, ge=1, description="Keep the checkpoints of this many tasks")


class _Database(_Strict):
    database: Annotated[str, AfterValidator(checked_url)] = Field(
        "sqlite:////var/lib/fedsim/fedsim.db", description="An SQLAlchemy URL without a password"
    )
    database_password_file: Secret | None = Field(
        None, description="File with the password: an absolute path, or the name of a credential"
    )


class ServerConfig(_Database, Measured, _Networked):
    """`server.yml`: the daemon that leads the tasks."""

    name: Name = Field("server", description="Name of the server, as in its certificate")
    spool: Path = Field(
        Path("/var/lib/fedsim/server"), description="Where files arrive, and the state of tasks is kept"
    )
    data: Path = Field(Path("/var/lib/fedsim/server/data"), description="Folder of the server's own test sets")
    datasets: Annotated[list[DataSetConfig], AfterValidator(_distinct)] = Field(
        [], description="Test sets of the server's own, so that no node must share one"
    )
    nodes: Annotated[list[NodeAddress], AfterValidator(_distinct), AfterValidator(_guarded_nodes)] = Field(
        min_length=1, description="The nodes of the lab"
    )
    node_timeout_seconds: Seconds = Field(35, description="A node not heard from for this long is considered offline")
    poll_seconds: Seconds = Field(5, le=300, description="How often it looks for tasks whose notification was lost")
    max_running_tasks: int = Field(1, ge=1, le=1000, description="Tasks that run at once")
    threads_per_worker: int = Field(1, ge=1, le=256, description="Threads of each worker; results depend on it")
    max_worker_restarts: int = Field(
        3, ge=0, le=100, description="How often in a row a worker may die before its task fails"
    )
    min_free_bytes: Bytes = Field(64 * MIB, description="On a full disk tasks wait until this much is free again")
    retention: Retention = Field(
        Retention(), description="Which old checkpoints are removed; each removal is logged and recorded"
    )


class DataSetConfig(_Strict):
    """A data set in the `data` folder: a file or a folder, and how to read it."""

    name: Name = Field(description="Name by which tasks choose it")
    path: DataPath = Field(description="Relative to the data folder")
    test_path: DataPath | None = Field(None, description="Where the test set is a file of its own")
    format: Annotated[str, _one_of(FORMATS)] | None = Field(
        None, description="idx, npz, csv, digits, cifar10 or an installed one; else by its files"
    )
    share: bool = Field(False, description="Whether the test set may be sent to the server")
    label_column: str | None = Field(None, description="Tables: the column with the class")
    id_column: str | None = Field(None, description="Tables: a column that is left out")
    scale: Literal["none", "standard", "minmax"] = Field(
        "none", description="Tables: scaling, fitted on this node's training rows"
    )
    scale_values: dict[str, tuple[float, float]] | None = Field(
        None, description="Tables: given scaling, column: [subtract, divide by]"
    )
    missing: Literal["error", "drop", "mean"] = Field(
        "error", description="Tables: what happens to a row with an empty cell"
    )
    labels: dict[str, int] | None = Field(None, description="Tables: class number of each label in the file")
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Without a test set: this share of the examples, always the same ones"
    )


class Institution(_Strict):
    """What the owner of the data allows; a task beyond it is refused with the reason."""

    models: list[Annotated[Name, _one_of(MODELS)]] | None = Field(
        None, description="Models that may be trained here; null: every installed one"
    )
    min_examples: int = Field(1, ge=1, description="Least number of examples behind an update that leaves")
    min_privacy_level: Literal["none", "secure_aggregation", "differential_privacy"] = Field(
        "none", description="Tasks below it are refused; this version offers none only"
    )


class ClientConfig(Measured, _Networked):
    """`client.yml`: the daemon that trains on this node's data."""

    name: Name = Field(description="Name by which the server knows this node")
    server: Guarded = Field(description="Where the server's receiver listens")
    server_name: Name = Field("server", description="Name in the certificate of the server's receiver")
    spool: Path = Field(
        Path("/var/lib/fedsim/client"),
        description="Where files arrive and updates wait; the receiver of this node has the same folder",
    )
    data: Path = Field(Path("/var/lib/fedsim/client/data"), description="Folder of the data sets")
    datasets: Annotated[list[DataSetConfig], AfterValidator(_distinct)] = Field(
        min_length=1, description="The data sets that may be trained on"
    )
    clients: int = Field(100, ge=1, le=1_000_000, description="How many clients this node can simulate")
    institution: Institution = Field(Institution(), description="What the owner of the data allows")
    announce_seconds: Seconds = Field(10, description="How often this node announces itself")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where it trains; auto takes a GPU if there is one"
    )
    engine: Annotated[Name, _one_of(ENGINES)] = Field("sequential", description="How it trains its clients")
    workers: int = Field(1, ge=1, le=256, description="Chunks that are trained at once")
    threads_per_worker: int = Field(1, ge=1, le=256, description="Threads of each worker; results depend on it")
    max_worker_restarts: int = Field(
        3, ge=0, le=100, description="How often in a row a worker may die before its task fails"
    )
    min_free_bytes: Bytes = Field(64 * MIB, description="On a full disk tasks wait until this much is free again")
    keep_models: int = Field(20, ge=1, description="Final models of this many tasks stay on this node")


class WebConfig(_Database, _Networked):
    """`web.yml`: the pages and the JSON API."""

    name: Name = Field("web", description="Name of the web, as in its certificate")
    listen: Annotated[Address, AfterValidator(_guarded_pages)] = Field(
        Address(port=8080), description="Where browsers connect"
    )
    server: Guarded = Field(Address(port=9001), description="Where the server's receiver listens")
    server_name: Name = Field("server", description="Name in the certificate of the server's receiver")
    checkpoints: Path = Field(
        Path("/var/lib/fedsim/server/checkpoints"), description="Folder of the checkpoints that can be downloaded"
    )
    registration: Literal["open", "approval", "closed"] = Field(
        "approval", description="Who may register: anyone, anyone with an administrator's approval, or no one"
    )
    node_timeout_seconds: Seconds = Field(35, description="A node not heard from for this long is shown as offline")
    session_hours: Annotated[float, Field(gt=0, le=8760)] = Field(12, description="A session ends after this time")
    login_attempts: int = Field(
        10, ge=1, description="Failed log-ins of a name or an address before further ones are refused"
    )
    login_window_seconds: Seconds = Field(900, description="Time in which failed log-ins are counted")
    registrations_per_address: int = Field(
        20, ge=1, description="Registrations from an address before further ones are refused"
    )
    registrations_overall: int = Field(200, ge=1, description="Registrations in total before further ones are refused")
    registration_window_seconds: Seconds = Field(3600, description="Time in which registrations are counted")
    secure_cookies: bool = Field(True, description="Send cookies over HTTPS only (plain loopback works as well)")
    behind_proxy: bool = Field(False, description="Trust X-Forwarded-For and -Proto of a proxy on this machine")
    threads: int = Field(8, ge=1, le=256, description="Requests that are handled at once")
    request_timeout_seconds: Seconds = Field(20, description="A request must be complete within this time")
    min_bytes_per_second: int = Field(1024, ge=1, description="A browser must receive an answer at least at this rate")
    metrics_to: list[IPvAnyNetwork] = Field(
        [ip_network("127.0.0.0/8"), ip_network("::1/128")], description="Who may read /metrics, as networks"
    )


ServerConfig.model_rebuild()
