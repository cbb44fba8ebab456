"""Decisions that need no memory: what the rules of an institution, a configuration or a report mean for a task."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fedsim.config import ClientConfig
from fedsim.config.institution import Institution
from fedsim.durations import DAY_SECONDS
from fedsim.errors import BadInput
from fedsim.learning.partitions import make_partitioner
from fedsim.learning.schedules import largest_learning_rate
from fedsim.messages import Assignment, Broadcast, TaskReport, Uplink
from fedsim.plugins import ATTACKS, short_name
from fedsim.settings import TaskSettings
from fedsim.state_machines.own_engines import engine_problem
from fedsim.state_machines.plan import Plan

NO_STATISTICS = "this institution lets no statistics of its data leave (institution.statistics)"
YEAR_SECONDS = 365 * DAY_SECONDS


@dataclass(frozen=True)
class AcceptedTask:
    """A task that this node accepted, at a time in seconds since the epoch."""

    at: float
    uid: str
    dataset: str
    user: str
    digest: str = ""  # of its assignment


def refusal(
    assignment: Assignment,
    config: ClientConfig,
    accepted: Iterable[AcceptedTask] = (),
    now: float = 0.0,
    *,
    processors: int = 1,
    earlier: bool = False,
) -> str | None:
    """Why the institution's rules in client.yml forbid this task, or None.

    Args:
        assignment: what the server asks for.
        config: of the node.
        accepted: the tasks that were accepted before.
        now: in seconds since the epoch.
        processors: of this machine.
        earlier: whether the task was here before this version first ran.
    """
    rules = config.institution
    if (
        problem := _not_welcome(assignment, config, accepted, now)
        or _too_costly(assignment, config, processors)
        or _too_few_clients(assignment, rules)
        or engine_problem(assignment.engine, config)
        or (None if earlier else _not_in_blocks(assignment, config))
    ) is not None:
        return problem
    settings = assignment.settings
    if settings.attack and is_guarded(config, settings.dataset):
        return f"the data set {settings.dataset} is guarded here, and no attack may use it"
    if not settings.trains and rules.statistics == "none":
        return NO_STATISTICS
    for group, name in settings.chosen_plugins.values() if settings.trains else ():
        allowed = rules.allows(group)
        if group == ATTACKS and allowed is not None and name not in allowed:
            return f"this institution does not allow the attack {name} (institution.attacks)"
        if allowed is not None and name not in allowed:
            return f"this institution allows the {short_name(group)} {', '.join(allowed) or 'none'}, not {name}"
    if rules.min_privacy_level != "none":
        return f"this institution demands the privacy level {rules.min_privacy_level}, which the task does not offer"
    if assignment.send_testset:
        shared = [dataset.name for dataset in config.datasets if dataset.share]
        if settings.dataset not in shared:
            return f"the test set of {settings.dataset} does not leave this house (`share: false`)"
    return None


def _not_welcome(
    assignment: Assignment, config: ClientConfig, accepted: Iterable[AcceptedTask], now: float
) -> str | None:
    """What the rules on users, purposes and the number of tasks say."""
    rules, user, dataset = config.institution, assignment.user, assignment.settings.dataset
    if rules.allowed_users is not None and user not in rules.allowed_users:
        return f"this institution takes no tasks of the user {user or '(not named)'} (allowed_users)"
    if rules.require_purpose and not assignment.settings.purpose.strip():
        return "this institution wants to know what a task is for: set `purpose`"
    year = [task for task in accepted if task.uid != assignment.task and task.at > now - YEAR_SECONDS]
    on_it = sum(task.dataset == dataset for task in year)
    if rules.max_tasks is not None and is_guarded(config, dataset) and on_it >= rules.max_tasks:
        return (
            f"this institution takes {rules.max_tasks} tasks a year on the guarded data set {dataset}, and has taken "
            f"{on_it} (max_tasks)"
        )
    others = [task for task in year if task.at > now - DAY_SECONDS]
    for most, number, what in (
        (rules.max_tasks_per_day, sum(task.dataset == dataset for task in others), f"on the data set {dataset}"),
        (rules.max_tasks_per_user_per_day, sum(task.user == user for task in others), f"of the user {user}"),
    ):
        if most is not None and number >= most:
            return f"this institution takes {most} tasks {what} in 24 hours, and has taken {number}: try again later"
    return None


def _too_costly(assignment: Assignment, config: ClientConfig, processors: int) -> str | None:
    """What the rules on capacity, threads, length and steps say."""
    settings, most = assignment.settings, config.institution.max_passes
    if assignment.num_clients > config.clients:
        return f"{assignment.num_clients} clients are asked for, this node simulates at most {config.clients}"
    for asked, own, what in (
        (assignment.engine.threads, config.threads_per_worker, "threads"),
        (assignment.workers or 1, config.workers, "workers"),
    ):
        if asked > (processors if own == "auto" else max(processors, own)):
            return f"{asked} {what} are asked for, this node has {processors} processors"
    if not settings.trains:
        return None
    passes = settings.num_rounds * settings.local_epochs
    if most is not None and passes > most:
        return (
            f"{settings.num_rounds} rounds of {settings.local_epochs} epochs are {passes} passes over the data, this "
            f"institution allows {most} (max_passes)"
        )
    return _too_long_steps(settings, config)


def _too_long_steps(settings: TaskSettings, config: ClientConfig) -> str | None:
    """What the rule on steps says of the largest learning rate of all rounds."""
    largest = config.institution.max_learning_rate
    if largest is None or not is_guarded(config, settings.dataset):
        return None
    try:
        rate = largest_learning_rate(settings)
    except BadInput as error:
        return str(error)
    if rate <= largest:
        return None
    asked = "" if rate == settings.local_learning_rate else f", {rate:g} by the schedule {settings.schedule},"
    return (
        f"a local_learning_rate of {settings.local_learning_rate:g}{asked} is asked for, this institution allows "
        f"{largest:g} on guarded data (max_learning_rate)"
    )


def is_guarded(config: ClientConfig, name: str) -> bool:
    """Whether the node forms the clients of this data set; one that is not configured is refused elsewhere."""
    return any(dataset.name == name and dataset.access == "guarded" for dataset in config.datasets)


def _not_in_blocks(assignment: Assignment, config: ClientConfig) -> str | None:
    """Why a task on a guarded data set is refused that was not planned with the node's blocks."""
    name = assignment.settings.dataset
    if assignment.guard is None and is_guarded(config, name):
        return f"the data set {name} is guarded here, and the task was planned as if it were open: submit it again"
    return None


def _too_few_clients(assignment: Assignment, rules: Institution) -> str | None:
    """What `min_clients` says of a task; with `local` a node is one client."""
    least = rules.min_clients
    if least == 1 or make_partitioner(assignment.settings).per_node:
        return None
    if assignment.num_clients < least:
        return f"this institution wants {least} clients here, {assignment.num_clients} are asked for (min_clients)"
    if assignment.uplink == Uplink.EACH_CLIENT and not rules.individual_updates:
        return (
            f"this institution lets no update leave of fewer than {least} clients (min_clients), and the task's rule "
            "needs that of each client (individual_updates)"
        )
    return None


def beyond_rules(assignment: Assignment, rules: Institution, number: int, broadcast: Broadcast) -> str | None:
    """Why the institution's rules forbid what a `globalparam` asks for, or None: updates of too few clients."""
    least = rules.min_clients
    if least == 1 or make_partitioner(assignment.settings).per_node:
        return None
    here = [len(chunk.clients) for chunk in broadcast.chunks]
    if assignment.uplink == Uplink.EACH_CLIENT:  # whether that is allowed was checked at the start
        here = [sum(here)] if here else []
    if any(clients < least for clients in here):
        return (
            f"round {number} asks for an update of {min(here)} clients, this institution lets none leave of fewer "
            f"than {least} (min_clients)"
        )
    return None


def beyond_assignment(assignment: Assignment, number: int, broadcast: Broadcast) -> str | None:
    """Why a `globalparam` asks for more than was assigned, or None: its rounds, its clients, each of them once."""
    last = assignment.settings.num_rounds + (1 if broadcast.final else 0)
    if number > last:
        return f"round {number} is asked for, the task has {assignment.settings.num_rounds}"
    first, end = assignment.first_client, assignment.first_client + assignment.num_clients
    clients = [client for chunk in broadcast.chunks for client in chunk.clients]
    if any(not first <= client < end for client in clients):
        wrong = next(client for client in clients if not first <= client < end)
        return f"client {wrong} is asked for in round {number}, this node was given {first} to {end - 1}"
    if len(set(clients)) < len(clients):
        return f"a client is asked for twice in round {number}"
    return None


def removed_nodes(plan: Plan, configured: Collection[str]) -> str | None:
    """Why a task cannot continue after a change of server.yml: nodes that take part are no longer in it; or None."""
    gone = [name for name in plan.nodes if name not in configured]
    return f"{', '.join(gone)} took part, but server.yml does not name it any more" if gone else None


def can_do_without(settings: TaskSettings, configured: Collection[str], left_out: Collection[str]) -> bool:
    """Whether the settings of a task allow that these nodes, of those in server.yml, take no part in it."""
    remaining = [name for name in configured if name not in left_out]
    return not set(settings.nodes) & set(left_out) and len(remaining) >= max(settings.num_nodes, 1)


def not_continued(rounds: int, why: str) -> str:
    """The reason of a completed task that was to get more rounds, and failed before the first of them."""
    return f"{rounds} rounds done; it could not be continued: {why}"


def missed_the_end(report: TaskReport, *, active: bool, final_pending: bool) -> bool:
    """Whether a node still works on a task that is over, and must be sent a stop.

    Args:
        report: what the node reports of the task.
        active: whether the task is waiting or running on the server.
        final_pending: whether the node has yet to receive the task's final model, which ends the task there.
    """
    return not active and not final_pending and report.state != "closing"
