"""The kinds of files that hosts send to each other: one row each, from which everything else about a kind derives.

Who may send it to whom, its path in the spool and the parser of that path, what its body is checked for, its size limit
and whether it must have been requested. A new kind is a member of `Kind` and a row of `KINDS`; the only other files
that know it are the one that sends it and the one that handles it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from fedsim.evaluation import EvaluationOrder, EvaluationReport
from fedsim.forwarding import ForwardedModel
from fedsim.messages import Assignment, Broadcast, Hello, Message, PhaseAnswer, PhaseRequest, Stop, Submission
from fedsim.speed import SpeedRequest
from fedsim.spool.npy import FLOAT32, TARGET_DIMENSIONS, TARGETS
from fedsim.spool.path_template import PathTemplate
from fedsim.update import Update


class Role(StrEnum):
    """What a host does: server, client (a node) or web."""

    SERVER = "server"
    CLIENT = "client"
    WEB = "web"


class Kind(StrEnum):
    """What a file is for."""

    HELLO = "hello"
    INITPARAM = "initparam"
    TESTSET = "testset"
    GLOBALPARAM = "globalparam"
    LOCALPARAM = "localparam"
    MEASURE = "measure"
    REQUEST = "request"
    ANSWER = "answer"
    EVALUATE = "evaluate"
    METRICS = "metrics"
    STOP = "stop"


@dataclass(frozen=True)
class JsonBody:
    """A JSON message. Where it has the fields `task` and `node`, they must be the file's task and the sender."""

    model: type[Message]


@dataclass(frozen=True)
class ParametersBody:
    """Parameters: a flat vector of the layout that the task expects, or of finite float32; `meta` comes with it."""

    meta: type[Message] = Message


@dataclass(frozen=True)
class ArrayBody:
    """An array with one of these numbers of dimensions, of this type or one of several; floats must be finite."""

    dtype: str | tuple[str, ...]
    dimensions: range


Body = JsonBody | ParametersBody | ArrayBody
SizeLimit = Literal["max_json_bytes", "max_parameter_bytes", "max_testset_bytes"]
"""A size limit is a field of `config.Limits`."""


@dataclass(frozen=True)
class KindRoute:
    """A direction in which a kind may be sent, and its body there: one for all files, or one for each `part`.

    With `announced` a file is accepted only while the server announces its digest, and names its sender.
    """

    sender: Role
    receiver: Role
    body: Body | Mapping[str, Body]
    announced: bool = False


@dataclass(frozen=True)
class KindSpec:
    """All that is to be known about a kind.

    Attributes:
        routes: who may send it to whom; everything else is refused.
        path: where it is stored, in a folder named like the kind. Files of a task begin with `{task}` there.
        limit: how large it may be.
        on_demand: whether it is accepted only while the receiving daemon expects it (see `spool.allowlist`).
    """

    routes: tuple[KindRoute, ...]
    path: PathTemplate
    limit: SizeLimit
    on_demand: bool = False

    @property
    def is_json(self) -> bool:
        """Whether it is a JSON message; else it is an array, stored with its metadata next to it."""
        return self.path.text.endswith(".json")

    @property
    def of_task(self) -> bool:
        """Whether it belongs to a task."""
        return "task" in self.path.required

    def route(self, sender: Role, receiver: Role) -> KindRoute | None:
        """How it is sent from one role to the other; None if it may not be."""
        return next((item for item in self.routes if (item.sender, item.receiver) == (sender, receiver)), None)


WEB_TO_SERVER: Final = (Role.WEB, Role.SERVER)
SERVER_TO_CLIENT: Final = (Role.SERVER, Role.CLIENT)
CLIENT_TO_SERVER: Final = (Role.CLIENT, Role.SERVER)
CLIENT_TO_CLIENT: Final = (Role.CLIENT, Role.CLIENT)

KINDS: Final[dict[Kind, KindSpec]] = {
    Kind.HELLO: KindSpec(
        routes=(KindRoute(*CLIENT_TO_SERVER, JsonBody(Hello)),),
        path=PathTemplate("hello/{sender}.json"),
        limit="max_json_bytes",
    ),
    Kind.INITPARAM: KindSpec(
        routes=(KindRoute(*WEB_TO_SERVER, JsonBody(Submission)), KindRoute(*SERVER_TO_CLIENT, JsonBody(Assignment))),
        path=PathTemplate("initparam/{task}.json"),
        limit="max_json_bytes",
    ),
    Kind.STOP: KindSpec(
        routes=(KindRoute(*WEB_TO_SERVER, JsonBody(Stop)), KindRoute(*SERVER_TO_CLIENT, JsonBody(Stop))),
        path=PathTemplate("stop/{task}.json"),
        limit="max_json_bytes",
    ),
    Kind.TESTSET: KindSpec(
        routes=(
            KindRoute(
                *CLIENT_TO_SERVER,
                {"data": ArrayBody(FLOAT32, range(2, 5)), "label": ArrayBody(TARGETS, TARGET_DIMENSIONS)},
            ),
        ),
        path=PathTemplate("testset/{task}/{sender}.test{part}.npy"),
        limit="max_testset_bytes",
        on_demand=True,
    ),
    Kind.GLOBALPARAM: KindSpec(
        routes=(
            KindRoute(*SERVER_TO_CLIENT, ParametersBody(Broadcast)),
            KindRoute(*CLIENT_TO_CLIENT, ParametersBody(ForwardedModel), announced=True),
        ),
        path=PathTemplate("globalparam/{task}/round-{round}.npy"),
        limit="max_parameter_bytes",
        on_demand=True,
    ),
    Kind.LOCALPARAM: KindSpec(
        routes=(KindRoute(*CLIENT_TO_SERVER, ParametersBody(Update)),),
        path=PathTemplate("localparam/{task}/round-{round}/{sender}.chunk-{chunk}[.client-{client}].npy"),
        limit="max_parameter_bytes",
        on_demand=True,
    ),
    Kind.MEASURE: KindSpec(
        routes=(KindRoute(*SERVER_TO_CLIENT, JsonBody(SpeedRequest)),),
        path=PathTemplate("measure/{task}.json"),
        limit="max_json_bytes",
    ),
    Kind.REQUEST: KindSpec(
        routes=(KindRoute(*SERVER_TO_CLIENT, JsonBody(PhaseRequest)),),
        path=PathTemplate("request/{task}/round-{round}.{phase}.json"),
        limit="max_json_bytes",
        on_demand=True,
    ),
    Kind.ANSWER: KindSpec(
        routes=(KindRoute(*CLIENT_TO_SERVER, JsonBody(PhaseAnswer)),),
        path=PathTemplate("answer/{task}/round-{round}/{sender}.phase-{phase}.json"),
        limit="max_json_bytes",
        on_demand=True,
    ),
    Kind.EVALUATE: KindSpec(
        routes=(KindRoute(*SERVER_TO_CLIENT, ParametersBody(EvaluationOrder)),),
        path=PathTemplate("evaluate/{task}/round-{round}.npy"),
        limit="max_parameter_bytes",
        on_demand=True,
    ),
    Kind.METRICS: KindSpec(
        routes=(KindRoute(*CLIENT_TO_SERVER, JsonBody(EvaluationReport)),),
        path=PathTemplate("metrics/{task}/round-{round}/{sender}.json"),
        limit="max_json_bytes",
        on_demand=True,
    ),
}
ON_DEMAND: Final = frozenset(kind for kind, spec in KINDS.items() if spec.on_demand)


def permitted_kinds(sender: Role, receiver: Role, *, announced: bool = False) -> frozenset[Kind]:
    """The kinds that one role may send to the other of its own accord, or what the server has `announced`."""
    routes = ((kind, spec.route(sender, receiver)) for kind, spec in KINDS.items())
    return frozenset(kind for kind, route in routes if route is not None and route.announced == announced)


def received_kinds(receiver: Role) -> frozenset[Kind]:
    """The kinds that some role may send to this one."""
    return frozenset(kind for kind, spec in KINDS.items() if any(item.receiver is receiver for item in spec.routes))
