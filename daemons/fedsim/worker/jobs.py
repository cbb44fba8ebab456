"""The messages between daemon and worker: one JSON object a line. They contain the paths of parameter files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, TypeAdapter

from fedsim.config import DataSetConfig
from fedsim.data_schema import DataSchema
from fedsim.errors import SuspendReason
from fedsim.initial import InitialFile
from fedsim.learning.column_statistics import StatisticsRule
from fedsim.learning.contributions import Contributions
from fedsim.learning.screenings import Screened
from fedsim.messages import Assignment, DataSetInfo, ModelSpec, SpeedInfo
from fedsim.settings import OptionValues, TaskSettings
from fedsim.speed import SpeedRequest
from fedsim.update import Update
from fedsim.worker.evaluation_jobs import HeldOutTested, JobLine, TestHeldOut

# ---------------------------------------------------------------- jobs of a server's worker


class MakeInitialModel(JobLine):
    """Write `model.npy`, made from the task's seed or taken from the file `initial`, into the folder `out`."""

    job: Literal["make_initial_model"] = "make_initial_model"
    settings: TaskSettings
    model_spec: ModelSpec
    initial: InitialFile | None = None
    max_parameters: int | None = None
    out: Path


class Aggregate(JobLine):
    """Combine the updates, each in its file, with the round in `base` (`digests`: of its files) into `out`."""

    job: Literal["aggregate"] = "aggregate"
    settings: TaskSettings
    round: int
    base: Path
    digests: dict[str, str] = Field(default_factory=dict)
    updates: tuple[Update, ...]
    files: tuple[Path, ...]
    out: Path


class TestSetFiles(JobLine):
    """The location of the test set: two files from a node, or the server's own data set and the schema."""

    data: Path | None = None
    labels: Path | None = None
    digests: tuple[str, str] | None = None
    dataset: DataSetConfig | None = None
    folder: Path | None = None
    data_schema: DataSchema | None = None


class Evaluate(JobLine):
    """Test the parameters in `model`, whose digest was recorded, on the test set."""

    job: Literal["evaluate"] = "evaluate"
    settings: TaskSettings
    model_spec: ModelSpec
    round: int
    model: Path
    digest: str | None = None
    testset: TestSetFiles


class SaveCheckpoint(JobLine):
    """Write the model with the flat vector in `model` as safetensors to `out`, and `about` as JSON next to it."""

    job: Literal["save_checkpoint"] = "save_checkpoint"
    settings: TaskSettings = TaskSettings()
    model_spec: ModelSpec
    round: int
    model: Path
    digest: str | None = None
    out: Path
    about: dict[str, object]


# ---------------------------------------------------------------- jobs of a node's worker


class InspectHost(JobLine):
    """Look at the processor, and whether there is the device that is wanted."""

    job: Literal["inspect_host"] = "inspect_host"
    device: Literal["auto", "cpu", "cuda"]


class GuardOrder(JobLine):
    """Where the division of a guarded data set is kept, and the least size of its blocks."""

    path: Path
    min_difference: int


class Inspect(JobLine):
    """Look at a data set in `folder`."""

    job: Literal["inspect"] = "inspect"
    folder: Path
    dataset: DataSetConfig
    guard: GuardOrder | None = None


class Load(JobLine):
    """Load the task's data and model; the node refuses updates with fewer than `min_examples` behind them.

    `client_figures`: the least number of examples of a client whose own figures leave. Memories: each worker's part.
    """

    job: Literal["load"] = "load"
    assignment: Assignment
    dataset: DataSetConfig
    folder: Path
    max_parameters: int | None = None
    max_memory_bytes: int | None = None
    installed_memory_bytes: int | None = None
    min_examples: int
    client_figures: int | None = None
    guard: GuardOrder | None = None
    statistics: StatisticsRule | None = None


class WriteTestset(JobLine):
    """Write the loaded data set's test set to the two paths."""

    job: Literal["write_testset"] = "write_testset"
    data: Path
    labels: Path


class Train(JobLine):
    """Train the clients of a chunk from the parameters in `model`; write the updates into the task's folder `out`.

    `scale` is the task's common scaling, if it has one, and `slot` that of the chunk (see `cut_chunks`). What clients
    kept after each of the rounds `tested` stays, because their models are still to be tested.
    """

    job: Literal["train"] = "train"
    round: int
    chunk: int
    clients: tuple[int, ...]
    slot: int = 0
    model: Path
    digest: str | None = None
    out: Path
    scale: tuple[tuple[float, float], ...] = ()
    tested: tuple[int, ...] = ()


class AnswerPhase(JobLine):
    """Answer the question of a phase that the task's strategy or a transform adds."""

    job: Literal["answer_phase"] = "answer_phase"
    phase: str
    round: int
    content: dict[str, JsonValue]


class MeasureSpeed(JobLine):
    """Find how this host trains quickest with one of `engines`; `threads` and `workers` are fixed unless None."""

    job: Literal["measure_speed"] = "measure_speed"
    request: SpeedRequest
    engines: tuple[str, ...]
    engine_options: OptionValues = Field(default_factory=dict)
    threads: int | None
    workers: int | None
    max_parameters: int | None = None
    memory_bytes: int
    budget_seconds: float = 1.0


HostJob = InspectHost | Inspect
NodeJob = Load | WriteTestset | Train | AnswerPhase | TestHeldOut
ServerJob = MakeInitialModel | Aggregate | Evaluate | SaveCheckpoint
Job = HostJob | NodeJob | ServerJob | MeasureSpeed


# ---------------------------------------------------------------- replies


class Done(JobLine):
    """The job is done, without a result."""

    reply: Literal["done"] = "done"
    job: str
    round: int = 0


class ModelMade(JobLine):
    """A model is stored in `out`; `finite` is False if it contains NaN or Inf.

    `digest` is over the parameters alone (`model_digest`), `files` over each file in `out`, as the wire offers it.
    `screening`: what was found of each update, in canonical order. `contributions`: of nodes and clients to the model.
    """

    reply: Literal["model_made"] = "model_made"
    round: int
    digest: str
    files: dict[str, str]
    finite: bool
    seconds: float
    screening: tuple[Screened, ...] = ()
    contributions: Contributions = Contributions()


class Tested(JobLine):
    """The result of a test: metrics and per-class metrics by name; None where a value is not finite."""

    reply: Literal["tested"] = "tested"
    round: int
    metrics: dict[str, float | None]
    class_metrics: dict[str, tuple[float | tuple[float, ...] | None, ...]]
    seconds: float


class CheckpointSaved(JobLine):
    """The checkpoint is in place."""

    reply: Literal["checkpoint_saved"] = "checkpoint_saved"
    round: int
    digest: str
    size: int


class HostInspected(JobLine):
    """What this host computes with."""

    reply: Literal["host_inspected"] = "host_inspected"
    device: Literal["cpu", "cuda"]
    processor: str
    torch: str


class DataSetInspected(JobLine):
    """The data set can be used."""

    reply: Literal["data_set_inspected"] = "data_set_inspected"
    dataset: DataSetInfo


class DataLoaded(JobLine):
    """The task's data is in memory; `num_examples` are runs of (how many clients, examples of each), in order.

    `partition` is the digest of the sizes of all clients.
    """

    reply: Literal["data_loaded"] = "data_loaded"
    num_examples: tuple[tuple[int, int], ...]
    partition: str = ""


class ChunkTrained(JobLine):
    """The chunk's updates are written."""

    reply: Literal["chunk_trained"] = "chunk_trained"
    round: int
    chunk: int
    updates: tuple[Update, ...]
    seconds: float


class AnswerMade(JobLine):
    """The answer to a phase's question."""

    reply: Literal["answer_made"] = "answer_made"
    phase: str
    round: int
    content: dict[str, JsonValue]


class SpeedMeasured(JobLine):
    """How this host trains quickest."""

    reply: Literal["speed_measured"] = "speed_measured"
    speed: SpeedInfo
    seconds: float


class ClientDiverged(JobLine):
    """A client's parameters are not finite."""

    reply: Literal["client_diverged"] = "client_diverged"
    round: int
    client: int
    chunk: int | None = None


class JobFailed(JobLine):
    """The job cannot be done with what was given; the reason is for people. `refused`: by the institution.

    `round`, `chunk`: what was to be trained. `suspends`: until this host works again, and `folder` can be written to.
    """

    reply: Literal["job_failed"] = "job_failed"
    job: str
    reason: str
    round: int | None = None
    chunk: int | None = None
    refused: bool = False
    suspends: SuspendReason | None = None
    folder: Path | None = None


Reply = (
    Done
    | ModelMade
    | Tested
    | CheckpointSaved
    | HostInspected
    | DataSetInspected
    | DataLoaded
    | ChunkTrained
    | AnswerMade
    | HeldOutTested
    | SpeedMeasured
    | ClientDiverged
    | JobFailed
)

_JOB: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="job")])
_REPLY: TypeAdapter[Reply] = TypeAdapter(Annotated[Reply, Field(discriminator="reply")])


def encode_job(job: Job) -> bytes:
    """One line."""
    return job.model_dump_json().encode() + b"\n"


def read_job(line: bytes) -> Job:
    """The job in a line that this host's daemon wrote."""
    return _JOB.validate_json(line)


def encode_reply(reply: Reply) -> bytes:
    """One line."""
    return reply.model_dump_json().encode() + b"\n"


def read_reply(line: bytes) -> Reply:
    """The reply in a line that this host's worker wrote."""
    return _REPLY.validate_json(line)
