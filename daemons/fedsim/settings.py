"""The settings of a task: one model for the web form, `initparam.json`, the database row and both state machines.

Names are the field's own. `initparam.json` also takes the names of the original platform, see `seed_settings`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from fedsim import plugins
from fedsim.errors import BadInput
from fedsim.initial import parse_source
from fedsim.plugin_settings import PLUGIN_LISTS, PLUGIN_SETTINGS, nested_options, options_setting, plugin_group
from fedsim.problems import OWN_TYPES, problem_text
from fedsim.seed_settings import translate
from fedsim.stop_conditions import metric_problems, parse_condition
from fedsim.task_kinds import STATISTICS_DEFAULTS, not_for_statistics

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
MetricName = Annotated[str, Field(pattern=r"^([A-Za-z][A-Za-z0-9_]{0,63})?$")]
OptionalName = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,63})?$")]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
OtherSeed = Annotated[Seed | None, BeforeValidator(lambda given: None if given == "" else given)]
MAX_OPTIONS = 100
MOST_ROUNDS = 100_000
MAX_TRANSFORMS = 20
MAX_NODES = 1000
MAX_CONDITIONS = 10
OptionValue = str | int | float | bool | None | list[str | int | float | bool]
OptionValues = Annotated[dict[str, OptionValue], Field(max_length=MAX_OPTIONS)]


def _split(given: object) -> object:
    """A list may also be given as text with commas, as in a form or on a command line."""
    return [name for part in given.split(",") if (name := part.strip())] if isinstance(given, str) else given


class TaskSettings(BaseModel):
    """What a person chooses for one training task; defaults are the original platform's."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["training", "statistics"] = Field(
        "training", description="What the task does: train a model, or only count and add up what the data holds"
    )
    title: str = Field("", max_length=120, description="A name of your own for the task")
    purpose: str = Field("", max_length=500, description="What the task is for: institutions see it and may ask for it")
    model: Name = Field("2nn", description="The model that is trained")
    model_options: OptionValues = Field({}, description="Options of the model")
    statistics: Literal["average", "local", "frozen"] = Field(
        "average",
        description="What happens with float buffers of the model, such as the statistics of BatchNorm: `average` them "
        "like parameters, keep them `local` at each client, or leave them `frozen` as they were at the start",
    )
    initial: str = Field(
        "",
        max_length=200,
        description="What training starts from: `task 42@20` is the checkpoint of round 20 of task 42 (without a "
        "round: its last), `file NAME` a file that an administrator put on the server; empty: the model's own start",
    )
    dataset: Name = Field("mnist", description="The data set, by the name that the nodes give it")
    partition: Name = Field(
        "shards", description="How the data is divided among the clients; `local`: each node's own file is one client"
    )
    partition_options: OptionValues = Field({}, description="Options of the partition")
    min_partition_size: int = Field(1, ge=1, le=1_000_000, description="Least number of examples of a client")
    num_clients: int = Field(100, ge=1, le=1_000_000, description="The population (with `local`: one for each node)")
    fraction_train: Share = Field(0.1, description="Share of the clients in each round's cohort")
    sampler: Name = Field("uniform", description="How each round's cohort is drawn from the clients")
    sampler_options: OptionValues = Field({}, description="Options of the sampler")
    num_rounds: int = Field(10, ge=1, le=MOST_ROUNDS, description="Rounds of broadcast, training and aggregation")
    objective: Name = Field("classification", description="The loss that clients minimise and the metrics of a test")
    objective_options: OptionValues = Field({}, description="Options of the objective")
    optimizer: Name = Field("sgd", description="The clients' optimizer")
    optimizer_options: OptionValues = Field({}, description="Options of the optimizer")
    local_epochs: int = Field(5, ge=1, le=1000, description="Passes over its data that a client makes in a round")
    max_steps: int = Field(
        0, ge=0, le=1_000_000, description="Most optimizer steps of a client in a round; 0: local_epochs decides"
    )
    local_batch_size: int = Field(10, ge=1, le=1_000_000, description="Examples in one step")
    local_learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(0.01, description="The clients' step size")
    schedule: Name = Field("constant", description="How the learning rate changes from round to round")
    schedule_options: OptionValues = Field({}, description="Options of the schedule")
    strategy: Name = Field("fedavg", description="What clients minimise besides the loss, and how updates are combined")
    strategy_options: OptionValues = Field({}, description="Options of the strategy")
    aggregation: OptionalName = Field(
        "", description="A strategy whose rule combines the updates instead; empty: the strategy's own"
    )
    aggregation_options: OptionValues = Field({}, description="Options of the aggregation")
    server_step: OptionalName = Field(
        "", description="A strategy whose server step is taken instead; empty: the strategy's own"
    )
    server_step_options: OptionValues = Field({}, description="Options of the server step")
    transforms: Annotated[tuple[Name, ...], Field(max_length=MAX_TRANSFORMS), BeforeValidator(_split)] = Field(
        (), description="What each update passes between training and aggregation, in this order"
    )
    transforms_options: Annotated[dict[Name, OptionValues], Field(max_length=MAX_TRANSFORMS)] = Field(
        {}, description="Options of the transforms, by their names"
    )
    screening: OptionalName = Field(
        "", description="Compares each round's updates with each other: `record`, or `exclude` outliers; empty: off"
    )
    screening_options: OptionValues = Field({}, description="Options of the screening")
    attack: OptionalName = Field(
        "", description="For research: an attack by some of the clients, on nodes whose owners allow it; empty: none"
    )
    attack_options: OptionValues = Field({}, description="Options of the attack")
    evaluate_every: int = Field(5, ge=1, le=100_000, description="Rounds between two tests on the test set")
    save_every: int = Field(20, ge=1, le=100_000, description="Rounds between two checkpoints")
    evaluation: Literal["server", "nodes", "both"] = Field(
        "server",
        description="Where models are tested: on the server's test set, on each node's own held-out examples, or both",
    )
    stop_when: Annotated[tuple[str, ...], Field(max_length=MAX_CONDITIONS), BeforeValidator(_split)] = Field(
        (),
        description="Ends the task after a tested round where one of these holds: `accuracy >= 0.97` (any metric of "
        "the objective, also `<=`), `patience 10 loss` (10 tests without a better value), `time 3600` (seconds)",
    )
    keep_best: MetricName = Field(
        "", description="A metric: the tested round with its best value stays saved as a checkpoint; empty: none"
    )
    final_model: Literal["last", "best"] = Field(
        "last", description="The model that nodes receive at the end: of the last round, or the best by `keep_best`"
    )
    max_missing_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.2, description="A task whose rounds lacked more than this share of their examples ends with a warning"
    )
    seed: Seed = Field(0, description="Same seed, same placement: same result, to the byte")
    model_seed: OtherSeed = Field(None, description="Of the model's initialisation; empty: the seed")
    partition_seed: OtherSeed = Field(None, description="Of the division of the data; empty: the seed")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the nodes train")
    num_nodes: int = Field(0, ge=0, le=10_000, description="How many nodes take part; 0: all that can")
    nodes: Annotated[tuple[Name, ...], Field(max_length=MAX_NODES), BeforeValidator(_split)] = Field(
        (), description="The nodes that take part, by name; the task waits for all of them. Empty: see num_nodes"
    )
    testset_from: OptionalName = Field("", description="The node whose test set serves if the server has none")
    min_responses: Share = Field(1.0, description="Share of the cohort that must answer before the deadline")
    round_timeout_seconds: Annotated[float, Field(ge=1, le=604_800)] = Field(
        600.0, description="A round's deadline: then it goes on with those who answered, if enough did"
    )

    @field_validator("initial")
    @classmethod
    def _known_form(cls, text: str) -> str:
        source = parse_source(" ".join(text.split()))
        return "" if source is None else str(source)

    @field_validator("stop_when")
    @classmethod
    def _conditions(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(parse_condition(text)) for text in texts))

    @field_validator("final_model")
    @classmethod
    def _best_by_a_metric(cls, chosen: str, info: ValidationInfo) -> str:
        if chosen == "best" and info.data.get("keep_best") == "":
            raise ValueError("is the best by a metric: name it with keep_best, such as keep_best: accuracy")
        return chosen

    @field_validator("nodes")
    @classmethod
    def _as_many_as_wanted(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("must name each node once")
        if names and info.data.get("num_nodes") not in {0, len(names)}:
            raise ValueError("names the nodes that take part: leave num_nodes at 0")
        return names

    @property
    def trains(self) -> bool:
        """Whether a model is trained; else the task only gathers statistics."""
        return self.kind == "training"

    @property
    def cohort_size(self) -> int:
        """Clients in each round: max(int(num_clients x fraction_train), 1), McMahan et al. 2017, algorithm 1."""
        # A product such as 100 x 0.29 is 28.999…: the nearest millionth is what the person meant.
        return max(int(round(self.num_clients * self.fraction_train, 6)), 1)

    @property
    def seed_of_model(self) -> int:
        """The seed of the model's initialisation."""
        return self.seed if self.model_seed is None else self.model_seed

    @property
    def seed_of_partition(self) -> int:
        """The seed of the division of the data among the clients."""
        return self.seed if self.partition_seed is None else self.partition_seed

    def tests_round(self, number: int) -> bool:
        """Whether the model after a round is tested: the first one, each `evaluate_every`-th and the last."""
        return number % self.evaluate_every == 0 or number == self.num_rounds

    def num_steps(self, num_examples: int) -> int:
        """Optimizer steps of a client with this many examples in a round."""
        steps = self.local_epochs * -(-num_examples // self.local_batch_size)
        return min(steps, self.max_steps) if self.max_steps else steps

    def options(self, setting: str) -> dict[str, Any]:
        """The options of the plug-in that `setting` names; of a list it is an entry such as `transforms.clip`."""
        outer, entry, name = setting.partition(".")
        options = getattr(self, options_setting(outer))
        return dict(options.get(name, {}) if entry else options)

    def plugin(self, setting: str) -> Any:
        """An instance of the plug-in that `setting` names, with its options; raises `BadInput` if it cannot be made."""
        group, name = self.chosen_plugins[setting]
        return plugins.make(group, name, self.options(setting))

    @property
    def chosen_plugins(self) -> dict[str, tuple[str, str]]:
        """(group, name) of each plug-in that the task uses, by its setting, or by its entry in one that is a list."""
        chosen = {setting: name for setting in PLUGIN_SETTINGS if (name := getattr(self, setting))}
        chosen |= {f"{setting}.{name}": name for setting in PLUGIN_LISTS for name in getattr(self, setting)}
        return {setting: (plugin_group(setting), name) for setting, name in chosen.items()}


# Settings of version 0.1 that are options of a plug-in now.
BECAME_OPTIONS = {
    "alpha": "partition_options.alpha of the partition dirichlet",
    "weighting": "strategy_options.weighting",
    "proximal_mu": "strategy_options.mu of the strategy fedprox",
    "server_learning_rate": "strategy_options.learning_rate of the strategy fedavgm",
    "server_momentum": "strategy_options.momentum of the strategy fedavgm",
}


class SettingsError(BadInput):
    """Settings that cannot be used; `problems` maps each field to what would be right there.

    `kinds` holds pydantic's error type and context of a field's problem, for those who say it in other words.
    """

    def __init__(self, problems: dict[str, str], kinds: dict[str, tuple[str, dict[str, Any]]] | None = None) -> None:
        self.problems = problems
        self.kinds = kinds or {}
        super().__init__("; ".join(f"{field}: {problem}" for field, problem in problems.items()))


def parse_settings(given: dict[str, Any]) -> tuple[TaskSettings, list[str]]:
    """Check settings that a person gave, in our names or the original platform's.

    Args:
        given: field name to value; numbers may come as text (a form's fields do).

    Returns:
        The settings, and notes that the person should see (an ignored field).

    Raises:
        SettingsError: with *all* problems, each beside its field.
    """
    settings, notes, problems = translate(given)
    if settings.get("kind") == "statistics":
        settings = STATISTICS_DEFAULTS | settings
    kinds: dict[str, tuple[str, dict[str, Any]]] = {}
    try:
        parsed = TaskSettings.model_validate(nested_options(settings, problems))
    except ValidationError as error:
        for item in error.errors(include_url=False):
            depth = 1 if item["loc"][:1] in {(name,) for name in (*PLUGIN_LISTS, "nodes", "stop_when")} else 2
            field = ".".join(map(str, item["loc"][:depth]))
            unknown = item["type"] == "extra_forbidden"
            problems.setdefault(field, _not_a_setting(field) if unknown else problem_text(item))
            if item["type"] not in {*OWN_TYPES, "extra_forbidden"}:
                kinds[field] = (item["type"], item.get("ctx", {}))
        parsed = None
    _check_plugins(settings if parsed is None else parsed.model_dump(), problems, kinds)
    if parsed is not None and not problems:
        problems |= metric_problems(parsed.plugin("objective").metrics.metrics, parsed.stop_when, parsed.keep_best)
    if parsed is not None and not parsed.trains:
        problems |= not_for_statistics(parsed, TaskSettings.model_validate(STATISTICS_DEFAULTS))
    if problems or parsed is None:
        raise SettingsError(problems, kinds)
    options: dict[str, Any] = {}
    for setting in parsed.chosen_plugins:
        outer, entry, name = setting.partition(".")
        if entry:
            options.setdefault(options_setting(outer), {})[name] = _complete(parsed, setting)
        else:
            options[options_setting(outer)] = _complete(parsed, setting)
    return parsed.model_copy(update=options), notes


def _not_a_setting(name: str) -> str:
    if name in BECAME_OPTIONS:
        return f"is not a setting any more; it is now {BECAME_OPTIONS[name]}"
    return f"is not a setting; settings are {', '.join(TaskSettings.model_fields)}"


def _check_plugins(
    settings: dict[str, Any], problems: dict[str, str], kinds: dict[str, tuple[str, dict[str, Any]]]
) -> None:
    """Whether each named plug-in is installed and takes the options that are given for it."""
    for setting, group in PLUGIN_SETTINGS.items():
        name = settings.get(setting, TaskSettings.model_fields[setting].default)
        key = options_setting(setting)
        options = settings.get(key, {})
        if setting in problems or not isinstance(name, str) or not isinstance(options, dict):
            continue
        if name == "":
            problems |= {f"{key}.{option}": f"choose {setting} first" for option in options}
            continue
        _check_plugin(setting, (group, name), key, options, problems, kinds)
    for setting, group in PLUGIN_LISTS.items():
        names, key = settings.get(setting, ()), options_setting(setting)
        options = settings.get(key, {})
        if setting in problems or not isinstance(names, list | tuple) or not isinstance(options, dict):
            continue
        if len(set(names)) < len(names):
            problems[setting] = "names one twice; give each once"
        problems |= {f"{key}.{name}": f"{name} is not one of the {setting}" for name in options if name not in names}
        for name in names:
            _check_plugin(setting, (group, name), f"{key}.{name}", options.get(name, {}), problems, kinds)


def _check_plugin(
    setting: str,
    plugin_id: tuple[str, str],
    key: str,
    options: dict[str, Any],
    problems: dict[str, str],
    kinds: dict[str, tuple[str, dict[str, Any]]],
) -> None:
    """Whether a plug-in is installed and takes its options, which are given as `key`."""
    group, name = plugin_id
    if name not in plugins.names(group):
        problems[setting] = plugins.unknown(group, name)
        return
    try:
        plugin = plugins.load(group, name)
        plugin.Options.model_validate(options)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            field = ".".join(map(str, (key, *item["loc"][:1])))  # an item of a list is a problem of its option
            problems.setdefault(field, plugins.option_problem(plugin, name, item))
            if item["type"] not in {*OWN_TYPES, "extra_forbidden"}:
                kinds[field] = (item["type"], item.get("ctx", {}))
    except BadInput as error:
        problems[setting] = str(error)


def _complete(settings: TaskSettings, setting: str) -> dict[str, Any]:
    """The options of a plug-in with their defaults, so that a task's row says all that it was run with."""
    group, name = settings.chosen_plugins[setting]
    model = plugins.load(group, name).Options
    return model.model_validate(settings.options(setting)).model_dump(mode="json")
