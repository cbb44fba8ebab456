"""The JSON messages between web, server and nodes: bodies of small files, and metadata of parameter files.

Every field is bounded, because names, lengths and numbers from a peer are untrusted.
"""

from __future__ import annotations

import json
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from fedsim.data_schema import MAX_FEATURES, DataSchema, Finite
from fedsim.errors import BadInput, SuspendReason
from fedsim.forwarding_offer import ForwardingOffer
from fedsim.label_counts import LabelCounts
from fedsim.plugins import Provenance, short_name
from fedsim.problems import problems_text
from fedsim.settings import OptionValues, SettingsError, TaskSettings, parse_settings
from fedsim.text import rounded

Uid = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
PhaseName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,64}$")]
Count = Annotated[int, Field(ge=0, le=10**12)]
MAX_TEXT = 2000
MAX_RUNS = 200_000
MAX_PROBLEMS = 100
MAX_LISTED = 1000  # data sets, and tasks, in a hello
MAX_PLUGINS = 100
"""Maximum number of plug-ins of one group in a hello."""
MAX_GROUPS = 20
MAX_NOTES = 10
MAX_SCHEMA_BYTES = 2**20
"""Maximum size of the schemas in a hello, as JSON: a hello is sent every few seconds."""
MAX_SPEEDS = 200
MAX_MEASURED_CHUNK = 1024
MAX_DIMENSIONS = 4
MAX_LENGTH = 10**6
MAX_CLASSES = 10**5
Text = Annotated[str, Field(max_length=MAX_TEXT)]
FeatureShape = Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_LENGTH)], ...], Field(max_length=MAX_DIMENSIONS)]
Classes = Annotated[int, Field(ge=1, le=MAX_CLASSES)]
"""The number of classes, at least 2, or of numbers or flags that are predicted."""
Seconds = Annotated[float, Field(ge=0, le=1e10, allow_inf_nan=False)]

M = TypeVar("M", bound="Message")


class Uplink(StrEnum):
    """What a node sends for a chunk: one weighted mean of its clients' updates, or the update of each client."""

    SUM = "sum"
    EACH_CLIENT = "each_client"


class Message(BaseModel):
    """Base class of messages; unknown fields are ignored, so that peers can have different versions."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class GuardInfo(Message):
    """How a guarded data set is divided: the digest of the node's secret, and its whole blocks."""

    secret_digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    block_size: Annotated[int, Field(ge=1, le=10**12)]
    num_blocks: Count


class DataSetInfo(Message):
    """The description of a data set that a node announces: what the server needs to choose nodes, never examples."""

    name: Name
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    num_train: Count
    num_test: Count
    num_held_out: Count = Field(0, description="On which the node tests models itself: its validation or test examples")
    feature_shape: FeatureShape
    num_classes: Classes
    share_test: bool = False
    require_approval: bool = Field(False, description="Whether the node's owner approves each task on it")
    data_schema: DataSchema | None = None
    notes: Annotated[tuple[Text, ...], Field(max_length=MAX_NOTES)] = ()
    guard: GuardInfo | None = Field(None, description="None: the data set is open; else num_train are those in blocks")
    natural_clients: Annotated[tuple[Count, ...], Field(max_length=64, description="Of 1, 2, 4, 8 … examples")] = ()
    label_counts: LabelCounts | None = Field(None, description="Training examples of each label; None: not shown")

    @property
    def shown(self) -> DataSetInfo:
        """What pages, API and downloads show: of a guarded data set no exact counts."""
        if self.guard is None:
            return self
        guard = self.guard.model_copy(update={"num_blocks": rounded(self.guard.num_blocks)})
        counts = {name: rounded(getattr(self, name)) for name in ("num_train", "num_test", "num_held_out")}
        return self.model_copy(update={"guard": guard, **counts})


class ModelSpec(Message):
    """The model of a task: the plug-in with its options, the shape of one example, and the number of outputs."""

    name: Name
    options: OptionValues = {}
    feature_shape: FeatureShape
    num_classes: Classes

    @classmethod
    def of(cls, settings: TaskSettings, feature_shape: tuple[int, ...], num_classes: int) -> ModelSpec:
        """The model that the settings choose, for examples of this shape."""
        return cls(
            name=settings.model,
            options=settings.model_options,
            feature_shape=feature_shape,
            num_classes=num_classes,
        )


class PluginInfo(Message):
    """A plug-in and which code it is: the package that brings it, its version, and the digest of its source."""

    name: Name
    distribution: Annotated[str, Field(max_length=200)] = ""
    version: Annotated[str, Field(max_length=64)] = ""
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""

    @classmethod
    def of(cls, name: str, found: Provenance) -> PluginInfo:
        """The plug-in with what is known of its code, cut to what a message can carry."""
        return cls(
            name=name,
            distribution=as_text(found.distribution, 200),
            version=as_text(found.version, 64),
            digest=found.digest,
        )

    @property
    def provenance(self) -> Provenance:
        """Which code it is."""
        return Provenance(distribution=self.distribution, version=self.version, digest=self.digest)


class EngineInfo(Message):
    """How a node trains: part of what makes two runs comparable byte by byte."""

    name: Name = "sequential"
    options: OptionValues = {}
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Annotated[int, Field(ge=1, le=4096)] = 1
    processor: Annotated[str, Field(max_length=200)] = ""
    torch: Annotated[str, Field(max_length=64)] = ""


class SpeedInfo(Message):
    """What a node measured as quickest for the kind of training `key` (see `fedsim.speed`), in powers of two."""

    key: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    engine: Name
    threads: Annotated[int, Field(ge=1, le=4096)]
    workers: Annotated[int, Field(ge=1, le=4096)]
    chunk_clients: Annotated[int, Field(ge=1, le=MAX_MEASURED_CHUNK)]


class TaskReport(Message):
    """The state of a task on a node. `num_examples` are runs of (number of clients, examples of each), in order.

    `partition` is the digest of the sizes of all clients (see `learning.partitions.sizes_digest`), `versions` are those
    of the workers that computed for it; `suspended`: why the task is suspended at present; `waiting`, `approved`: the
    owner has yet to approve it, or has, and it has not begun; `worker_deaths`: of a worker in a job, in a row.
    """

    task: Uid
    state: Literal["waiting", "approved", "loading", "ready", "closing", "refused", "failed", "diverged"]
    reason: Text = ""
    round: Count | None = None
    num_examples: Annotated[tuple[tuple[Count, Count], ...], Field(max_length=MAX_RUNS)] = ()
    partition: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""
    versions: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=100)] = ()
    suspended: SuspendReason | None = None
    worker_deaths: Count = 0


class AuditHead(Message):
    """The newest line of a node's audit log: its number, and the digest that covers it and all before it."""

    lines: Count = 0
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$")] = ""


class Hello(Message):
    """`hello`: the announcement of a node, with the state of its tasks."""

    node: Name
    version: Annotated[str, Field(max_length=64)]
    sent_at: Seconds
    clients: Annotated[int, Field(ge=1, le=1_000_000)]
    workers: Annotated[int, Field(ge=1, le=4096)] = 1
    engine: EngineInfo
    measures: Annotated[bool, Field(description="Whether it measures how to train a task (`auto` in client.yml)")] = (
        False
    )
    engines: Annotated[tuple[Name, ...], Field(max_length=MAX_PLUGINS)] = ()
    speeds: Annotated[tuple[SpeedInfo, ...], Field(max_length=MAX_SPEEDS)] = ()
    datasets: Annotated[tuple[DataSetInfo, ...], Field(max_length=MAX_LISTED)] = ()
    problems: Annotated[tuple[Text, ...], Field(max_length=MAX_PROBLEMS)] = ()
    plugins: Annotated[
        dict[Name, Annotated[tuple[PluginInfo, ...], Field(max_length=MAX_PLUGINS)]],
        Field(max_length=MAX_GROUPS, description='The plug-ins offered, by group: "models", "strategies", …'),
    ] = {}
    min_examples: Count = 1
    min_clients: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    individual_updates: bool = True
    min_privacy_level: Name = "none"
    statistics: Name = "none"
    tasks: Annotated[tuple[TaskReport, ...], Field(max_length=MAX_LISTED)] = ()
    audit: AuditHead = AuditHead()
    instance: Annotated[str, Field(pattern=r"^[0-9a-f]{0,32}$", description="The id of the node's spool")] = ""
    start: Annotated[Count, Field(description="How often the node was started on its spool")] = 0
    session: Annotated[str, Field(pattern=r"^[0-9a-f]{0,32}$", description="The id of this start")] = ""
    host: Annotated[str, Field(max_length=320, description="Name and address of the machine, for people")] = ""
    accept_tasks: bool = True
    forwarding: ForwardingOffer = Field(ForwardingOffer(), description="Whether global models may come from nodes")
    certificate_expires_at: Seconds | None = Field(None, description="None without TLS")

    @property
    def shown(self) -> Hello:
        """What pages, API and downloads show: where data is guarded no exact counts."""
        if all(dataset.guard is None for dataset in self.datasets):
            return self
        tasks = tuple(report.model_copy(update={"num_examples": ()}) for report in self.tasks)
        return self.model_copy(update={"datasets": tuple(one.shown for one in self.datasets), "tasks": tasks})

    def offers(self, group: str) -> dict[str, PluginInfo]:
        """The plug-ins of the group that are installed here and that the institution allows, by name."""
        return {plugin.name: plugin for plugin in self.plugins.get(short_name(group), ())}


def _in_any_names(given: object) -> object:
    """Settings by fedsim's names or those of the original platform."""
    if not isinstance(given, dict):
        return given
    try:
        return parse_settings(given)[0]
    except SettingsError as error:
        raise ValueError(str(error)) from error


class Submission(Message):
    """`initparam` from the web: notifies of a new task. The settings in the task's row are used, not these."""

    task: Uid
    settings: Annotated[TaskSettings, BeforeValidator(_in_any_names)]


class Assignment(Message):
    """`initparam` to a node: a task, and its `num_clients` clients from `first_client` on."""

    task: Uid
    number: Annotated[int, Field(ge=1)]
    settings: TaskSettings
    dataset_digest: str | None = Field(None, description="Of the data that the node announced")
    guard: str | None = Field(None, description="Digest of the secret that divides the node's guarded data set")
    first_client: Count
    num_clients: Annotated[int, Field(ge=1, le=1_000_000)]
    own_clients: bool = Field(False, description="Whether they are formed of this node's data alone, which is open")
    model_spec: ModelSpec
    data_schema: DataSchema | None = Field(None, description="The order of columns and labels in this task")
    engine: EngineInfo
    workers: Annotated[int, Field(ge=1, le=4096)] | None = Field(None, description="None: as many as client.yml says")
    uplink: Uplink
    slots: Annotated[int, Field(ge=1)] | None = Field(None, description="Clients at once, if rounds are asynchronous")
    send_testset: bool = False
    user: Annotated[str, Field(max_length=200, description="Who submitted the task, as the server names them")] = ""
    resumes: Uid | None = Field(None, description="The run of this task that has ended, which this continues")
    begin: bool = Field(True, description="false: the node's owner is to approve the task, which has not begun yet")

    @property
    def digest(self) -> str:
        """The digest of everything that is asked of the node, which is what its owner approves."""
        later = ("slots", "own_clients")  # without these the digest is that of earlier versions
        left_out = {"begin", *(name for name in later if not getattr(self, name))}
        content = json.dumps(self.model_dump(mode="json", exclude=left_out), sort_keys=True)
        return sha256(content.encode()).hexdigest()


class Chunk(Message):
    """Some of the cohort's clients on one node: the unit of training, summing, sending and repeating."""

    id: Count
    clients: Annotated[tuple[Count, ...], Field(min_length=1, max_length=1_000_000)]


class Broadcast(Message):
    """The metadata of `globalparam`: what this node trains in the round. `final`: nothing, it is the final model.

    `used_through`: the node's updates up to that round can be cleared; `used`: those of further (round, chunk), too.
    """

    chunks: tuple[Chunk, ...] = ()
    used_through: Count = 0
    used: Annotated[tuple[tuple[Count, Count], ...], Field(max_length=1_000_000)] = ()
    final: bool = False
    scale: Annotated[tuple[tuple[Finite, Finite], ...], Field(max_length=MAX_FEATURES)] = Field(
        (), description="With `scale: common`: what is subtracted from each column, and by what it is divided"
    )

    @classmethod
    def of_final_model(cls, last_round: int) -> Broadcast:
        """The metadata of the final model, the result of the last round."""
        return cls(used_through=last_round, final=True)


class PhaseRequest(Message):
    """`request`: the question of a phase that a strategy or a transform adds to the task."""

    task: Uid
    phase: PhaseName
    round: Count
    content: dict[str, JsonValue]


class PhaseAnswer(PhaseRequest):
    """`answer`: a node's answer to the question of a phase."""

    node: Name


class Stop(Message):
    """`stop`: the task has ended for this node; from the web, a request to stop the task."""

    task: Uid
    reason: Text = ""


def as_text(text: str, most: int = MAX_TEXT) -> str:
    """Truncate `text` to at most `most` characters, with a note; undecodable bytes of file names become "?"."""
    text = text.encode(errors="replace").decode()
    if len(text) <= most:
        return text
    cut = f" … ({len(text)} letters, cut)"
    return text[: most - len(cut)] + cut


def read_message(model: type[M], data: bytes | str | dict[str, object], source: str) -> M:
    """Validate JSON text, or parsed JSON, as a `model`; `BadInput` names `source` and the errors."""
    try:
        return model.model_validate(data) if isinstance(data, dict) else model.model_validate_json(data)
    except ValidationError as error:
        raise BadInput(f"{source} is not a valid {model.__name__}: {problems_text(error)}") from error
