"""The configuration model of each daemon. Keys carry their unit; unknown keys are errors; every default is safe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from fedsim.config.database import DatabaseKeys
from fedsim.config.fields import (
    Address,
    Bytes,
    DataPath,
    Guarded,
    Host,
    MeasurableCount,
    Name,
    Port,
    Seconds,
    Secret,
    StrictModel,
    WarmWorker,
    check_format_options,
    check_guarded,
    distinct_names,
    installed,
    options_of,
)
from fedsim.config.forwarding import ForwardingRules
from fedsim.config.institution import Institution
from fedsim.config.retention import Retention
from fedsim.durations import DAY_SECONDS
from fedsim.plugins import ENGINES, FORMATS
from fedsim.settings import OptionValues

AUTO = "auto"
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


class Networked(StrictModel):
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
    max_connections: int = Field(512, ge=1, le=100_000, description="Open connections of peers")
    max_pending_connections: int = Field(
        256,
        ge=1,
        le=100_000,
        description="Connections whose other side has not identified itself; new ones replace old",
    )
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
    keep_partial_seconds: Seconds = Field(
        DAY_SECONDS, description="Partly received files are kept this long for resuming"
    )
    threads: int = Field(4, ge=2, le=64, description="Threads; one is always left for the connections")


class PeerConfig(StrictModel):
    """A peer that may send files to this receiver."""

    name: Name = Field(description="Name in the peer's certificate")
    role: Literal["server", "client", "web"] = Field(description="Role in the peer's certificate")


class ReceiverConfig(Measured, Networked):
    """`receiver.yml`: the daemon that receives files from peers and moves them into the spool."""

    name: Name = Field(description="Name of this host, as in its certificate")
    role: Literal["server", "client"] = Field(description="What runs on this host: the server, or a node")
    listen: Guarded = Field(description="Where it listens")
    spool: Path = Field(description="Where files arrive; the same folder as the daemon's")
    peers: Annotated[list[PeerConfig], AfterValidator(distinct_names)] = Field(
        min_length=1, description="Who may send files to this receiver"
    )
    limits: Limits = Field(Limits(), description="What it accepts; everything beyond is refused with a reason")


class TaskLimits(StrictModel):
    """What a task may be made of, whatever nodes announce; a node beyond it is left out with the reason."""

    max_classes: int = Field(10_000, ge=2, le=100_000, description="Largest number of classes of a data set")
    max_features: int = Field(10_000_000, ge=1, description="Largest number of values in one example")
    max_examples: int = Field(1_000_000_000, ge=1, description="Largest number of training examples of a node")
    max_parameters: int = Field(
        2_000_000_000, ge=1, description="Largest number of a model's parameters, counted before it is made"
    )
    max_node_weight: float = Field(
        0.8, gt=0, le=1, description="A node with a larger share of a task's clients or examples is noted"
    )


class NodeAddress(StrictModel):
    """A node and the address of its receiver."""

    name: Name = Field(description="Name in the node's certificate")
    address: Host = Field("127.0.0.1", description="Where its receiver listens")
    port: Port = Field(9002, description="Port of its receiver")
    listens: bool = Field(True, description="false: no receiver, the node receives over the connection that it opens")
    max_clients: int | None = Field(
        None, ge=1, description="Most clients that it is given, however many it announces; null: no limit"
    )

    def __str__(self) -> str:
        """The node with its address, for messages."""
        return f"{self.name} ({self.address}:{self.port})"


class ServerConfig(DatabaseKeys, Measured, Networked):
    """`server.yml`: the daemon that coordinates the tasks."""

    name: Name = Field("server", description="Name of the server, as in its certificate")
    spool: Path = Field(
        Path("/var/lib/fedsim/server"), description="Where files arrive, and the state of tasks is kept"
    )
    data: Path = Field(Path("/var/lib/fedsim/server/data"), description="Folder of the server's own test sets")
    models: Path = Field(
        Path("/var/lib/fedsim/models"), description="Folder of safetensors files from which tasks can start"
    )
    datasets: Annotated[list[DataSetConfig], AfterValidator(distinct_names)] = Field(
        [], description="Test sets of the server's own, so that no node has to share one"
    )
    nodes: Annotated[list[NodeAddress], AfterValidator(distinct_names), AfterValidator(_guarded_nodes)] = Field(
        min_length=1, description="The nodes of the lab"
    )
    forwarding: bool = Field(
        False,
        description="Whether nodes whose owners allow it pass global models on, where that is measured to be quicker",
    )
    node_timeout_seconds: Seconds = Field(35, description="A node not heard from for this long is considered offline")
    poll_seconds: Seconds = Field(5, le=300, description="How often to look for tasks whose notification was lost")
    max_running_tasks: int = Field(1, ge=1, le=1000, description="Tasks that run at once")
    max_running_tasks_per_user: int | None = Field(
        None, ge=1, description="Tasks of one user that run at once; null: no limit"
    )
    threads_per_worker: int = Field(1, ge=1, le=256, description="Threads of each worker; results depend on it")
    warm_worker: WarmWorker = True
    max_worker_restarts: int = Field(
        3, ge=0, le=100, description="How often in a row a worker may die before its task fails"
    )
    min_free_bytes: Bytes = Field(64 * MIB, description="On a full disk tasks wait until this much is free again")
    approval_days: Annotated[float, Field(gt=0, le=365)] = Field(
        14,
        description="A node whose owner has not approved a task by then is left out where the task can do without it; "
        "otherwise the task goes on waiting, while others run",
    )
    prepare_timeout_seconds: Seconds = Field(
        3600,
        description="A node that has not loaded its data, or sent the test set, by then is left out where the task can "
        "do without it; otherwise the task goes on waiting, while others run",
    )
    limits: TaskLimits = Field(TaskLimits(), description="What a task may be made of, whatever nodes announce")
    dataset_digests: dict[Name, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        {}, description="Data set -> the digest that each copy of it has; others are learnt, see fedsim admin datasets"
    )
    testset_from: dict[Name, Name] = Field(
        {}, description="Data set -> the node whose test set serves for tasks that do not name one"
    )
    retention: Retention = Field(
        Retention(), description="Which old checkpoints and states are removed; each removal is logged and recorded"
    )

    @property
    def idle_threads(self) -> int:
        """Threads of a worker that waits for the first task."""
        return self.threads_per_worker


class DataSetConfig(StrictModel):
    """A data set in the `data` folder: a file or a folder, and how to read it.

    Keys that are not fields are options of the format.
    """

    name: Name = Field(description="Name by which tasks choose it")
    path: DataPath = Field(description="Relative to the data folder")
    test_path: DataPath | None = Field(None, description="Where the test set is a file of its own")
    format: Annotated[str, installed(FORMATS)] | None = Field(
        None,
        description="an installed one, such as idx, npz, csv, parquet or text; detected from the files if omitted",
    )
    format_options: Annotated[dict[str, Any], AfterValidator(check_format_options)] = Field(
        {}, description="Options of the format; they can also be given as keys of the data set"
    )
    share: bool = Field(False, description="Whether the test set may be sent to the server")
    show_labels: bool = Field(False, description="Whether users see how many training examples have each label")
    require_approval: bool = Field(
        False, description="Whether the owner approves each task on it, as `institution.require_approval` does for all"
    )
    access: Literal["open", "guarded"] = Field(
        "guarded",
        description="open: for public data; guarded: the node forms the clients, of blocks of at least min_difference",
    )
    test_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="If there is no test set: share of the examples to hold out, always the same ones"
    )
    validation_share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="Share of the examples that never train, on which this node tests models; guarded: of blocks"
    )

    @model_validator(mode="before")
    @classmethod
    def _gather_options(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("format_options", {}), dict):
            return given
        options = {key: value for key, value in given.items() if key not in cls.model_fields}
        known = {key: value for key, value in given.items() if key in cls.model_fields}
        return known | {"format_options": {**given.get("format_options", {}), **options}} if options else given


def _reachable_owner(path: Path | None, info: ValidationInfo) -> Path | None:
    """Require the socket on which the owner approves tasks, if the owner must."""
    rules = [info.data.get("institution"), *info.data.get("datasets", ())]
    if path is None and any(rule is not None and rule.require_approval for rule in rules):
        raise ValueError("is needed for require_approval: such as /run/fedsim-owner/client.sock")
    return path


def _divided_once(datasets: list[DataSetConfig]) -> list[DataSetConfig]:
    """Guarded data sets have files of their own: examples in two divisions would be in blocks that overlap."""
    guarded = [dataset for dataset in datasets if dataset.access == "guarded"]
    for number, dataset in enumerate(guarded):
        for other in guarded[:number]:
            if dataset.path == other.path:
                raise ValueError(
                    f"{other.name} and {dataset.name} are guarded and have the same path {dataset.path}: list it once"
                )
    return datasets


class ClientConfig(Measured, Networked):
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
    datasets: Annotated[list[DataSetConfig], AfterValidator(distinct_names), AfterValidator(_divided_once)] = Field(
        min_length=1, description="The data sets that may be trained on"
    )
    clients: int = Field(100, ge=1, le=1_000_000, description="How many clients this node can simulate")
    institution: Institution = Field(Institution(), description="What the owner of the data allows")
    owner_socket: Annotated[Path | None, AfterValidator(_reachable_owner)] = Field(
        None,
        validate_default=True,
        description="Unix socket for the owner's commands, such as `fedsim-client pending`; null: there is none",
    )
    announce_seconds: Seconds = Field(10, description="How often this node announces itself")
    forwarding: ForwardingRules = Field(ForwardingRules(), description="Whether models may travel from node to node")
    accept_tasks: bool = Field(True, description="false: takes part in no new task; running ones continue")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where it trains; auto uses a GPU if there is one"
    )
    engine: Annotated[Name, installed(ENGINES, AUTO)] = Field(
        "batched", description="How it trains its clients; auto: as a measurement finds quickest, once for each kind"
    )
    engine_options: Annotated[OptionValues, AfterValidator(options_of(ENGINES, "engine"))] = Field(
        {}, description="Options of the engine"
    )
    workers: MeasurableCount = Field(1, description="Chunks that are trained at once; auto: measured")
    threads_per_worker: MeasurableCount = Field(
        1, description="Threads of each worker, on which results depend; auto: measured"
    )
    warm_worker: WarmWorker = True
    max_worker_restarts: int = Field(3, ge=0, le=100, description="How often in a row a worker may die in a task")
    min_free_bytes: Bytes = Field(64 * MIB, description="On a full disk tasks wait until this much is free again")
    keep_models: int = Field(20, ge=1, description="Final models of this many tasks stay on this node")
    keep_client_states: int = Field(
        3,
        ge=0,
        description="Of this many ended tasks what clients keep stays, so that they can be resumed or continued",
    )

    @property
    def measures(self) -> bool:
        """Whether something of how it trains is measured."""
        return AUTO in {self.engine, self.workers, self.threads_per_worker}

    @property
    def fixed_workers(self) -> int | None:
        """The workers of a task; None: measured."""
        return self.workers if isinstance(self.workers, int) else None

    @property
    def idle_threads(self) -> int:
        """Threads of a worker that waits for the first task."""
        return self.threads_per_worker if isinstance(self.threads_per_worker, int) else 1

    def requires_approval(self, dataset: str) -> bool:
        """Whether the owner approves each task on the data set of this name."""
        named = any(one.require_approval for one in self.datasets if one.name == dataset)
        return named or self.institution.require_approval


ServerConfig.model_rebuild()
