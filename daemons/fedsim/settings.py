"""The settings of a task: one model for the web form, `initparam.json`, the database row and both state machines.

Names are the field's own. `initparam.json` also takes the names of the original platform, see `SEED_NAMES`.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedsim.errors import BadInput

MODELS = "fedsim.models"
FORMATS = "fedsim.formats"
STRATEGIES = ("fedavg", "fedprox", "fedavgm", "median")
PARTITIONS = ("iid", "shards", "dirichlet", "local")

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


@cache
def installed(group: str) -> tuple[str, ...]:
    """The names that installed packages offer in an entry-point group, sorted; nothing is imported."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


class TaskSettings(BaseModel):
    """What a person chooses for one training task; defaults are the original platform's."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    title: str = Field("", max_length=120, description="A name of your own for the task")
    model: Name = Field("2nn", description="The model that is trained")
    dataset: Name = Field("mnist", description="The data set, by the name that the nodes give it")
    partition: Literal["iid", "shards", "dirichlet", "local"] = Field(
        "shards", description="How the data is divided among the clients; `local`: each node's own file is one client"
    )
    alpha: Annotated[float, Field(ge=0.001, le=1000)] = Field(
        0.5, description="Dirichlet only: concentration; small is uneven, large is even"
    )
    min_partition_size: int = Field(1, ge=1, le=1_000_000, description="Least number of examples of a client")
    num_clients: int = Field(100, ge=1, le=1_000_000, description="The population (with `local`: one for each node)")
    fraction_train: Share = Field(0.1, description="Share of the clients in each round's cohort")
    num_rounds: int = Field(10, ge=1, le=100_000, description="Rounds of broadcast, training and aggregation")
    local_epochs: int = Field(5, ge=1, le=1000, description="Passes over its data that a client makes in a round")
    local_batch_size: int = Field(10, ge=1, le=1_000_000, description="Examples in one step")
    local_learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(0.01, description="Step size of plain SGD")
    strategy: Literal["fedavg", "fedprox", "fedavgm", "median"] = Field(
        "fedavg", description="How updates are combined"
    )
    weighting: Literal["examples", "uniform"] = Field(
        "examples", description="A client's weight: its number of examples, or the same for each"
    )
    proximal_mu: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.01, description="FedProx only: pull to the global model"
    )
    server_learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(
        1.0, description="FedAvgM only: server step size"
    )
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="FedAvgM only: server momentum")
    evaluate_every: int = Field(5, ge=1, le=100_000, description="Rounds between two tests on the test set")
    save_every: int = Field(20, ge=1, le=100_000, description="Rounds between two checkpoints")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Same seed, same placement: same result, to the byte")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the nodes train")
    num_nodes: int = Field(0, ge=0, le=10_000, description="How many nodes take part; 0: all that can")
    min_responses: Share = Field(1.0, description="Share of the cohort that must answer before the deadline")
    round_timeout_seconds: Annotated[float, Field(ge=1, le=604_800)] = Field(
        600.0, description="A round's deadline: then it goes on with those who answered, if enough did"
    )

    @field_validator("model")
    @classmethod
    def _known_model(cls, model: str) -> str:
        if model not in (known := installed(MODELS)):
            raise ValueError(f"there is no {model!r}; there are {', '.join(known)}")
        return model

    @property
    def cohort_size(self) -> int:
        """Clients in each round: max(int(num_clients x fraction_train), 1), McMahan et al. 2017, algorithm 1."""
        # A product such as 100 x 0.29 is 28.999…: the nearest millionth is what the person meant.
        return max(int(round(self.num_clients * self.fraction_train, 6)), 1)

    @property
    def linear(self) -> bool:
        """Whether updates may be summed before the server sees them: a robust rule needs each one."""
        return self.strategy != "median"


# The original platform's name -> ours.
SEED_NAMES = {
    "gpu": "device",
    "num_of_clients": "num_clients",
    "cfraction": "fraction_train",
    "epoch": "local_epochs",
    "batchsize": "local_batch_size",
    "modelname": "model",
    "learning_rate": "local_learning_rate",
    "val_freq": "evaluate_every",
    "save_freq": "save_every",
    "num_comm": "num_rounds",
    "iid": "partition",
}
SEED_MODELS = {"mnist_2nn": ("2nn", "mnist"), "mnist_cnn": ("cnn", "mnist"), "cifar10_cnn": ("cifar_cnn", "cifar10")}
_IID = {"0": "shards", "false": "shards", "1": "iid", "true": "iid"}
_GPU = re.compile(r"\d{1,4}(\s*,\s*\d{1,4})*")
SAVE_PATH_NOTE = "save_path is ignored: the server decides where files lie"


class SettingsError(BadInput):
    """Settings that cannot be used; `problems` maps each field to what would be right there.

    `kinds` holds pydantic's error type and context of a field's problem, for those who say it in other words.
    """

    def __init__(self, problems: dict[str, str], kinds: dict[str, tuple[str, dict[str, Any]]] | None = None) -> None:
        self.problems = problems
        self.kinds = kinds or {}
        super().__init__("; ".join(f"{field}: {problem}" for field, problem in problems.items()))


def _translate(given: dict[str, Any]) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """Seed names to ours; returns the settings, notes for the person, and problems by field."""
    settings: dict[str, Any] = {}
    notes: list[str] = []
    problems: dict[str, str] = {}
    implied_dataset: str | None = None
    for name, value in given.items():
        ours = SEED_NAMES.get(name, name)
        if name == "save_path":
            notes.append(SAVE_PATH_NOTE)
        elif ours in settings or (ours != name and ours in given):
            problems[name] = f"is given twice: {name} is another name of {ours}"
        elif isinstance(value, bool) and name != "iid":  # pydantic would take true for 1
            problems[ours] = "must not be true or false"
        elif name == "gpu":
            # The original's device number: which GPU is the node's affair.
            settings[ours] = "auto"
            if not _GPU.fullmatch(str(value)):
                problems[name] = "must be the number of a GPU; the node decides which one it takes"
        elif name == "iid":
            settings[ours] = _IID.get(str(value).lower(), PARTITIONS[0])
            if str(value).lower() not in _IID:
                problems[name] = "must be 0 (each client holds few labels) or 1"
        elif ours == "model" and isinstance(value, str) and value in SEED_MODELS:
            settings[ours], implied_dataset = SEED_MODELS[value]
        else:
            settings[ours] = value
    if implied_dataset is not None:
        settings.setdefault("dataset", implied_dataset)
    return settings, notes, problems


def parse_settings(given: dict[str, Any]) -> tuple[TaskSettings, list[str]]:
    """Check settings that a person gave, in our names or the original platform's.

    Args:
        given: field name to value; numbers may come as text (a form's fields do).

    Returns:
        The settings, and notes that the person should see (an ignored field).

    Raises:
        SettingsError: with *all* problems, each beside its field.
    """
    settings, notes, problems = _translate(given)
    kinds: dict[str, tuple[str, dict[str, Any]]] = {}
    try:
        parsed = TaskSettings.model_validate(settings)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            message = item["msg"].removeprefix("Value error, ")
            field = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                message = f"is not a setting; settings are {', '.join(TaskSettings.model_fields)}"
            problems[field] = message
            if item["type"] not in {"value_error", "extra_forbidden"}:
                kinds[field] = (item["type"], item.get("ctx", {}))
        parsed = None
    if problems or parsed is None:
        raise SettingsError(problems, kinds)
    return parsed, notes
