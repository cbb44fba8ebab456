"""The configuration model of each daemon. Keys carry their unit; unknown keys are errors; every default is safe."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, IPvAnyNetwork, ValidationInfo, model_validator

from fedsim.config.database import checked_url
from fedsim.config.fields import (
    Address,
    Bytes,
    DataPath,
    Guarded,
    Host,
    Name,
    Port,
    Seconds,
    Secret,
    StrictModel,
    check_format_options,
    check_guarded,
    distinct_names,
    guarded_web_address,
    installed,
    options_of,
)
from fedsim.plugins import (
    ENGINES,
    FORMATS,
    MODELS,
    OBJECTIVES,
    OPTIMIZERS,
    PARTITIONS,
    SAMPLERS,
    STRATEGIES,
    TRANSFORMS,
    short_name,
)
from fedsim.settings import OptionValues

KIB, MIB, GIB = 2**10, 2**20, 2**30


class TlsConfig(StrictModel):
    """This host's certificate, and the certificate authority that it trusts."""

    certificate: Path = Field(description="This host's certificate, with its name and role")
    key: Secret = Field(description="Its private key: an absolute path, or the name of a credential")
    authority: Path = Field(description="The authority's certificate; several while the authority changes")
    revoked: Path | None = Field(None, description="List of revoked certificates, one for each authority")


class Measured(StrictModel):
    """A daemon with metrics for Prometheus."""

    metrics: Address | None = Field(None, description="Where Prometheus fetches metrics; without it there are none")


class _Networked(StrictModel):
    """A daemon with connections. Its fields precede all others, so that the validators of addresses can read them."""

    tls: TlsConfig | None = Field(None, description="Certificates; required for connections beyond loopback")
    insecure_plaintext: bool = Field(False, description="Allow unencrypted connections beyond loopback")


def _guarded_nodes(nodes: list[NodeAddress], info: ValidationInfo) -> list[NodeAddress]:
    check_guarded(nodes, info)
    return nodes


class Limits(StrictModel):
    """What a receiver accepts from its peers; everything beyond is refused with a reason."""

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
    min_bytes_per_second: Bytes = Field(1024, description="A body that arrives more slowly is considered stalled")
    max_bytes_in_flight: Bytes = Field(64 * GIB, description="Bytes of all files being received")
    max_files_in_flight: int = Field(384, ge=1, le=100_000, description="Files being received")
    max_share_per_peer: float = Field(
        0.25, gt=0, le=1, description="Share of these limits, and of the free disk space, that one peer may use"
    )
    min_free_bytes: Bytes = Field(256 * MIB, description="Disk space that files of parameters must leave free")
    min_free_bytes_for_json: Bytes = Field(1 * MIB, description="Disk space that JSON messages must leave free")
    keep_partial_seconds: Seconds = Field(86_400, description="Partly received files are kept this long for resuming")
    threads: int = Field(4, ge=2, le=64, description="Threads; one is always left for the connections")


class PeerConfig(StrictModel):
    """A peer that may send files to this receiver."""

    name: Name = Field(description="Name in the peer's certificate")
    role: Literal["server", "client", "web"] = Field(description="Role in the peer's certificate")


class ReceiverConfig(Measured, _Networked):
    """`receiver.yml`: the daemon that receives files from peers and moves them into the spool."""

    name: Name = Field(description="Name of this host, as in its certificate")
    role: Literal["server", "client"] = Field(description="What runs on this host: the server, or a node")
    listen: Guarded = Field(description="Where it listens")
    spool: Path = Field(description="Where files arrive; the same folder as the daemon's")
    peers: Annotated[list[PeerConfig], AfterValidator(distinct_names)] = Field(
        min_length=1, description="Who may send files to this receiver"
    )
    limits: Limits = Field(Limits(), description="What it accepts; everything beyond is refused with a reason")


class NodeAddress(StrictModel):
    """A node and the address of its receiver."""

    name: Name = Field(description="Name in the node's certificate")
    address: Host = Field("127.0.0.1", description="Where its receiver listens")
    port: Port = Field(9002, description="Port of its receiver")
    listens: bool = Field(True, description="false: no receiver, the node receives over the connection that it opens")

    def __str__(self) -> str:
        """The node with its address, for messages."""
        return f"{self.name} ({self.address}:{self.port})"


class Retention(StrictModel):
    """Which old checkpoints are removed; each removal is logged and recorded with the task."""

    keep_days: Seconds | None = Field(None, le=36_500, description="Remove checkpoints of tasks older than this")
    keep_tasks: int | None = Field(None, ge=1, description="Keep the checkpoints of this many tasks")


class _Database(StrictModel):
    database: Annotated[str, AfterValidator(checked_url)] = Field(
        "sqlite:////var/lib/fedsim/fedsim.db", description="An SQLAlchemy URL without a password"
    )
    database_password_file: Secret | None = Field(
        None, description="File with the password: an absolute path, or the name of a credential"
    )


class ServerConfig(_Database, Measured, _Networked):
    """`server.yml`: the daemon that coordinates the tasks."""

    name: Name = Field("server", description="Name of the server, as in its certificate")
    spool: Path = Field(
        Path("/var/lib/fedsim/server"), description="Where files arrive, and the state of tasks is kept"
    )
    data: Path = Field(Path("/var/lib/fedsim/server/data"), description="Folder of the server's own test sets")
    datasets: Annotated[list[DataSetConfig], AfterValidator(distinct_names)] = Field(
        [], description="Test sets of the server's own, so that no node has to share one"
    )
    nodes: Annotated[list[NodeAddress], AfterValidator(distinct_names), AfterValidator(_guarded_nodes)] = Field(
        min_length=1, description="The nodes of the lab"
    )
    node_timeout_seconds: Seconds = Field(35, description="A node not heard from for this long is considered offline")
    poll_seconds: Seconds = Field(5, le=300, description="How often to look for tasks whose notification was lost")
    max_running_tasks: int = Field(1, ge=1, le=1000, description="Tasks that run at once")
    threads_per_worker: int = Field(1, ge=1, le=256, description="Threads of each worker; results depend on it")
    max_worker_restarts: int = Field(
        3, ge=0, le=100, description="How often in a row a worker may die before its task fails"
    )
    min_free_bytes: Bytes = Field(64 * MIB, description="On a full disk tasks wait until this much is free again")
    retention: Retention = Field(
        Retention(), description="Which old checkpoints are removed; each removal is logged and recorded"
    )


class DataSetConfig(StrictModel):
    """A data set in the `data` folder: a file or a folder, and how to read it.

    Keys that are not fields are options of the format.
    """

    name: Name = Field(description="Name by which tasks choose it")
    path: DataPath = Field(description="Relative to the data folder")
    test_path: DataPath | None = Field(None, description="Where the test set is a file of its own")
    format: Annotated[str, installed(FORMATS)] | None = Field(
        None,
        description="idx, npz, csv, parquet, digits, cifar10 or an installed one; detected from the files if omitted",
    )
    format_options: Annotated[dict[str, Any], AfterValidator(check_format_options)] = Field(
        {}, description="Options of the format; they can also be given as keys of the data set"
    )
    share: bool = Field(False, description="Whether the test set may be sent to the server")
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="If there is no test set: share of the examples to hold out, always the same ones"
    )

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("format_options", {}), dict):
            return given
        options = {key: value for key, value in given.items() if key not in cls.model_fields}
        known = {key: value for key, value in given.items() if key in cls.model_fields}
        return known | {"format_options": {**given.get("format_options", {}), **options}} if options else given


class Institution(StrictModel):
    """What the owner of the data allows; a task beyond it is refused with the reason."""

    models: list[Annotated[Name, installed(MODELS)]] | None = Field(
        None, description="Models that may be trained here; null: every installed one"
    )
    strategies: list[Annotated[Name, installed(STRATEGIES)]] | None = Field(
        None, description="Strategies, also those of `aggregation` and `server_step`; null: every installed one"
    )
    partitions: list[Annotated[Name, installed(PARTITIONS)]] | None = Field(
        None, description="Partitions of the data among clients; null: every installed one"
    )
    objectives: list[Annotated[Name, installed(OBJECTIVES)]] | None = Field(
        None, description="Objectives that may be minimised here; null: every installed one"
    )
    optimizers: list[Annotated[Name, installed(OPTIMIZERS)]] | None = Field(
        None, description="Optimizers of the clients; null: every installed one"
    )
    samplers: list[Annotated[Name, installed(SAMPLERS)]] | None = Field(
        None, description="Samplers of each round's cohort; null: every installed one"
    )
    transforms: list[Annotated[Name, installed(TRANSFORMS)]] | None = Field(
        None, description="Transforms of updates; null: every installed one"
    )
    min_examples: int = Field(1, ge=1, description="Minimum number of examples behind an update that leaves the node")
    min_privacy_level: Literal["none", "secure_aggregation", "differential_privacy"] = Field(
        "none", description="Tasks below it are refused; this version supports only none"
    )

    def allows(self, group: str) -> list[str] | None:
        """The allowed plug-ins of a group that tasks choose from; None: every installed one."""
        allowed: list[str] | None = getattr(self, short_name(group))
        return allowed


class ClientConfig(Measured, _Networked):
    """`client.yml`: the daemon that trains on this node's data."""

    name: Name = Field(description="Name by which the server knows this node")
    server: Guarded = Field(description="Where the server's receiver listens")
    server_name: Name = Field("server", description="Name in the certificate of the server's receiver")
    listens: bool = Field(
        True, description="false: no receiver, this daemon receives over the connection that it opens"
    )
    limits: Limits = Field(Limits(), description="What it accepts from the server if it does not listen")
    spool: Path = Field(
        Path("/var/lib/fedsim/client"),
        description="Where files arrive and updates wait; the receiver of this node has the same folder",
    )
    data: Path = Field(Path("/var/lib/fedsim/client/data"), description="Folder of the data sets")
    datasets: Annotated[list[DataSetConfig], AfterValidator(distinct_names)] = Field(
        min_length=1, description="The data sets that may be trained on"
    )
    clients: int = Field(100, ge=1, le=1_000_000, description="How many clients this node can simulate")
    institution: Institution = Field(Institution(), description="What the owner of the data allows")
    announce_seconds: Seconds = Field(10, description="How often this node announces itself")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where it trains; auto uses a GPU if there is one"
    )
    engine: Annotated[Name, installed(ENGINES)] = Field("sequential", description="How it trains its clients")
    engine_options: Annotated[OptionValues, AfterValidator(options_of(ENGINES, "engine"))] = Field(
        {}, description="Options of the engine"
    )
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
    listen: Annotated[Address, AfterValidator(guarded_web_address)] = Field(
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
    login_window_seconds: Seconds = Field(900, description="Period over which failed log-ins are counted")
    registrations_per_address: int = Field(
        20, ge=1, description="Registrations from an address before further ones are refused"
    )
    registrations_overall: int = Field(200, ge=1, description="Registrations in total before further ones are refused")
    registration_window_seconds: Seconds = Field(3600, description="Period over which registrations are counted")
    secure_cookies: bool = Field(True, description="Send cookies over HTTPS only (plain loopback works as well)")
    behind_proxy: bool = Field(False, description="Trust X-Forwarded-For and -Proto of a proxy on this machine")
    threads: int = Field(8, ge=1, le=256, description="Requests that are handled at once")
    request_timeout_seconds: Seconds = Field(20, description="A request must be complete within this time")
    min_bytes_per_second: int = Field(1024, ge=1, description="A browser must receive an answer at least at this rate")
    metrics_to: list[IPvAnyNetwork] = Field(
        [ip_network("127.0.0.0/8"), ip_network("::1/128")], description="Who may read /metrics, as networks"
    )


ServerConfig.model_rebuild()
