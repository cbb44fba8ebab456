"""The state machines of server and nodes alone, in memory: a simulated world loses, doubles and delays what they say.

A world has a clock, a disk for each host (which survives a crash), and a queue of things that will happen. Models are
hashes: the final one depends on every update, in canonical order, of every round.
"""

from __future__ import annotations

import copy
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from typing import Any

import pytest
from plugin_support import INFO, UID, all_plugins, attempt, chosen_plugins, hello, planned, plugin

from fedsim.config import ClientConfig
from fedsim.evaluation import Estimate, EvaluationReport, combine
from fedsim.messages import Assignment, Broadcast, TaskReport, Uplink
from fedsim.settings import TaskSettings
from fedsim.state_machines import node_events as on_node
from fedsim.state_machines import task_events as on_server
from fedsim.state_machines.action_queue import ActionQueue
from fedsim.state_machines.candidates import Impossible, Waiting
from fedsim.state_machines.final_delivery import FINAL_DELIVERY_SECONDS
from fedsim.state_machines.node import NodeMachine, NodePhase
from fedsim.state_machines.plan import Plan
from fedsim.state_machines.policy import refusal
from fedsim.state_machines.task import TaskMachine
from fedsim.state_machines.task_events import Restored
from fedsim.update import Update


def plan_for(settings: TaskSettings, nodes: tuple[str, ...] = ("a", "b", "c"), **changes: object) -> Plan:
    return planned(*(hello(name, **changes) for name in nodes), settings=settings)


def came(node: str | None, number: int, chunk: int, client: int | None = None, *, digest: str = "d" * 64) -> Update:
    """An update as it comes in, whose own count of examples is nonsense."""
    return Update(
        node=node,
        base_round=number,
        chunk=chunk,
        client=client,
        num_examples=10**6,
        metrics={"train_loss": 1.0},
        digest=digest,
    )


def digest(*parts: object) -> str:
    return blake2b(repr(parts).encode(), digest_size=32).hexdigest()


def scores(model: str) -> on_server.MetricPairs:
    """The metrics of a model: as good as any, and the same for the same model."""
    return (("loss", 1.0), ("accuracy", int(model[:8], 16) / 2**32))


def report_of(node: str, number: int, model: str) -> EvaluationReport:
    """What a node reports of a model."""
    accuracy = dict(scores(digest(model, node)))["accuracy"]
    metrics = {"accuracy": Estimate(value=accuracy)}
    return EvaluationReport(task=UID, node=node, round=number, num_examples=100, metrics=metrics)


SETTINGS = TaskSettings(
    num_clients=12, fraction_train=0.5, num_rounds=6, evaluate_every=2, save_every=3, round_timeout_seconds=600
)


# ---------------------------------------------------------------- the world


@dataclass
class ServerDisk:
    counts: tuple[int, ...] | None = None
    models: dict[int, str] = field(default_factory=dict)
    made: dict[int, str] = field(default_factory=dict)
    rosters: dict[int, on_server.WriteRoster] = field(default_factory=dict)
    updates: dict[tuple[int, int, int | None], Update] = field(default_factory=dict)
    evaluated: set[int] = field(default_factory=set)
    saved: set[int] = field(default_factory=set)
    testset: set[str] = field(default_factory=set)
    tests: dict[int, on_server.MetricPairs] = field(default_factory=dict)
    totals: on_server.Totals = field(default_factory=on_server.Totals)
    best: int | None = None
    reports: dict[tuple[int, str], EvaluationReport] = field(default_factory=dict)
    node_tests: dict[int, on_server.RecordNodeTests] = field(default_factory=dict)
    used: tuple[tuple[int, int, int], ...] = ()
    bases: dict[int, str] = field(default_factory=dict)
    outcome: on_server.Finish | None = None

    def commit(self, number: int, totals: on_server.Totals, used: tuple[tuple[int, int, int], ...]) -> None:
        self.totals, self.used = totals, used
        self.models[number] = self.bases[number + 1] = self.made.pop(number)
        self.rosters.pop(number, None)


@dataclass
class NodeDisk:
    assignment: Assignment | None = None
    globals: dict[int, tuple[Broadcast, str]] = field(default_factory=dict)
    updates: dict[tuple[int, int, int | None], str] = field(default_factory=dict)
    orders: dict[int, str] = field(default_factory=dict)
    final: str | None = None
    unread: set[int] = field(default_factory=set)  # models that arrived since the newest one was last chosen


class World:
    """Server and nodes with their disks, and everything that can go wrong between them."""

    def __init__(self, settings: TaskSettings, seed: int, *, faults: float) -> None:
        self.plan = plan_for(settings)
        self.random = random.Random(seed)
        self.faults = faults
        self.now = 0.0
        self.queue: list[tuple[float, int, object]] = []
        self.order = count()
        self.disk = ServerDisk()
        self.node_disks = {name: NodeDisk() for name in self.plan.nodes}
        self.nodes: dict[str, NodeMachine | None] = dict.fromkeys(self.plan.nodes)
        self.node_actions: dict[str, ActionQueue[on_node.Action]] = {}
        self.life = dict.fromkeys((*self.plan.nodes, "server"), 0)
        self.crashes = 0
        self.late = 0  # how many clients completed a round that was over
        self.broken: set[str] = set()
        self.busy = dict.fromkeys(self.plan.nodes, 0)
        self.pace = dict.fromkeys(self.plan.nodes, 1.0)  # how many times longer a node trains than others
        self.rosters: dict[int, on_server.WriteRoster] = {}

    # -- time

    def later(self, seconds: float, do: object) -> None:
        heapq.heappush(self.queue, (self.now + seconds, next(self.order), do))

    def alive(self, host: str, seconds: float, do: object) -> None:
        """Happens only if the host has not crashed until then: a worker's answer, a timer."""
        life = self.life[host]
        self.later(seconds, lambda: do() if self.life[host] == life else None)

    def message(self, do: object) -> None:
        """Delivered at least once, late and perhaps twice: a lost one is sent again."""
        delay = self.random.uniform(0.01, 0.5)
        while self.random.random() < self.faults:
            delay += self.random.uniform(0.5, 20)
        self.later(delay, do)
        if self.random.random() < self.faults:
            self.later(delay + self.random.uniform(0, 60), do)

    def run(self, *, restores: bool = False) -> str:
        self.start_server()
        for name in self.plan.nodes:
            self.later(self.random.random(), lambda name=name: self.announce(name, repeat=True))
        if self.faults:
            for _ in range(4):
                victim = self.random.choice([*self.plan.nodes, "server"])
                self.later(self.random.uniform(1, 200), lambda victim=victim: self.crash(victim))
        if restores:
            self.later(self.random.uniform(1, 100), self.restore_a_backup)
        while self.queue and self.disk.outcome is None:
            self.now, _, do = heapq.heappop(self.queue)
            assert self.now < 100_000, f"stuck: {self.server.phase} waits for {self.server.waiting_for}"
            do()
        assert self.disk.outcome is not None
        assert self.disk.outcome.outcome == "completed", self.disk.outcome.reason
        released = self.disk.outcome.released
        return self.disk.models[max(self.disk.models) if released is None else released]

    def crash(self, host: str) -> None:
        self.crashes += 1
        self.life[host] += 1
        if host == "server":
            self.start_server()
        else:
            self.nodes[host] = None
            self.start_node(host)
            self.announce(host, repeat=True)

    def restore_a_backup(self) -> None:
        """The server gets its state of some time ago, and has lost everything since."""
        backup = copy.deepcopy(self.disk)

        def restore() -> None:
            if max(self.disk.models, default=-1) < self.server.last_round:
                self.disk = backup
                self.crash("server")

        self.later(self.random.uniform(1, 60), restore)

    def break_down(self, name: str) -> None:
        """From now on the node's workers fail, also after a restart; its daemon says so."""
        self.broken.add(name)
        self.node_told(name, on_node.Failed("the GPU is gone"))

    # -- the server's shell

    def start_server(self) -> None:
        disk = self.disk
        committed = max(disk.models, default=-1)
        disk.made.clear()
        restored = Restored(
            committed=committed,
            counts=disk.counts,
            roster=disk.rosters.get(committed + 1),
            kept=frozenset(disk.models),
            evaluated=frozenset(disk.evaluated),
            saved=frozenset(disk.saved),
            testset_parts=frozenset(disk.testset),
            tests=tuple(sorted(disk.tests.items())),
            totals=disk.totals,
            node_tested=frozenset(disk.node_tests),
            used=disk.used,
        )
        self.server = TaskMachine(self.plan, restored, own_testset=False)
        self.actions = ActionQueue(self.do)
        self.serve(lambda: self.server.begin(self.now))
        for report in list(disk.reports.values()):
            self.told(on_server.NodeTested(report))
        for update in list(disk.updates.values()):
            self.told(on_server.UpdateArrived(update))

    def told(self, event: on_server.Event) -> None:
        if self.disk.outcome is None:
            self.serve(lambda: self.read(event))

    def read(self, event: on_server.Event) -> list[on_server.Action]:
        """Handle an event in its turn, when the models of all committed rounds are known."""
        if isinstance(event, on_server.UpdateArrived) and self.of_another_model(event.update):
            return []
        return self.server.handle(event, self.now)

    def of_another_model(self, update: Update) -> bool:
        """Whether it was trained from another model of its round, from before the server was restored."""
        base = self.disk.bases.get(update.base_round)
        key = (update.base_round, update.chunk, update.client)
        return base is not None and update.digest != digest(base, *key)

    def serve(self, step: Callable[[], list[on_server.Action]]) -> None:
        self.actions.add(step)
        self.wake_later()

    def wake_later(self) -> None:
        if not self.actions.held and self.server.wake_at is not None:
            self.alive("server", self.server.wake_at - self.now, lambda: self.told(on_server.TimePassed()))

    def store(self, host: str, actions: ActionQueue[Any], write: Callable[[], None]) -> None:
        """A durable write takes its time: a crash may come before it, or after it and before the host knows."""

        def stored() -> None:
            actions.release(list)
            if host == "server":
                self.wake_later()

        actions.hold()
        seconds = self.random.uniform(0.001, 1)
        self.alive(host, seconds, write)
        self.alive(host, seconds + self.random.uniform(0.001, 1), stored)

    def worker(self, event: on_server.Event, before: object = None) -> None:
        def done() -> None:
            if before is not None:
                before()
            self.told(event)

        self.alive("server", self.random.uniform(0.01, 3), done)

    def do(self, action: on_server.Action) -> None:
        disk = self.disk
        match action:
            case on_server.Assign(name):
                self.message(lambda: self.node_assigned(name))
            case on_server.CreateInitialModel():
                disk.made[0] = digest("initial")
                self.worker(on_server.InitialModelMade())
            case on_server.RecordCounts(counts):
                assert disk.counts is None
                self.store("server", self.actions, lambda: setattr(disk, "counts", counts))
            case on_server.SendGlobal(name, number, broadcast):
                model = disk.models[number - 1]
                self.message(lambda: self.node_got(name, number, broadcast, model))
            case on_server.SendFinal(name, number, released):
                model = disk.models[number if released is None else released]
                final = Broadcast(used_through=number, final=True)
                self.message(lambda: self.node_got(name, number + 1, final, model))
            case on_server.WriteRoster(number):
                assert number not in disk.rosters, "a roster is written once"
                self.rosters[number] = action
                self.store("server", self.actions, lambda: disk.rosters.update({number: action}))
            case on_server.AggregateRound(number, updates):
                assert disk.rosters[number].updates == updates
                for update in updates:  # the files must still be there
                    assert disk.updates[update.base_round, update.chunk, update.client].digest == update.digest
                made = combined(disk.models[number - 1], updates)
                self.worker(on_server.Aggregated(number, finite=True), lambda: disk.made.update({number: made}))
            case on_server.Commit(number):
                assert number == max(disk.models, default=-1) + 1, "rounds are committed in order, once"
                self.store("server", self.actions, lambda: disk.commit(number, action.totals, action.used))
            case on_server.ClearUpdates(through):
                disk.updates = {key: update for key, update in disk.updates.items() if key[0] > through}
            case on_server.DiscardUpdate(update):
                disk.updates.pop((update.base_round, update.chunk, update.client), None)
            case on_server.EvaluateRound(number):
                self.evaluate(number)
            case on_server.Save(number):
                assert number in disk.models
                if number % self.plan.settings.evaluate_every == 0 or number == self.plan.settings.num_rounds:
                    assert number in disk.evaluated, "a checkpoint contains its metrics"
                self.worker(on_server.Saved(number), lambda: disk.saved.add(number))
            case on_server.OrderEvaluation() | on_server.RecordNodeTests() | on_server.DiscardReport():
                self.have_nodes_test(action)
            case on_server.KeepBest() | on_server.RemoveCheckpoint():
                self.keep(action)
            case on_server.ClearModel(number):
                assert number != max(disk.models)
                del disk.models[number]
            case on_server.Finish():
                self.store("server", self.actions, lambda: setattr(disk, "outcome", action))

    def keep(self, action: on_server.KeepBest | on_server.RemoveCheckpoint) -> None:
        match action:
            case on_server.KeepBest(number):
                self.disk.best = number
            case on_server.RemoveCheckpoint(number, better):
                assert better in self.disk.saved, "the better one is saved first"
                self.disk.saved.discard(number)

    def evaluate(self, number: int) -> None:
        disk = self.disk
        assert disk.testset == {"data", "label"}
        assert number not in disk.evaluated
        assert number in disk.models, "the model must still be there"
        metrics = scores(disk.models[number])

        def record() -> None:
            disk.evaluated.add(number)
            disk.tests[number] = metrics

        self.worker(on_server.Evaluated(number, metrics), record)

    def have_nodes_test(
        self, action: on_server.OrderEvaluation | on_server.RecordNodeTests | on_server.DiscardReport
    ) -> None:
        disk = self.disk
        match action:
            case on_server.OrderEvaluation(name, number):
                model = disk.models[number]
                self.message(lambda: self.order_came(name, number, model))
            case on_server.DiscardReport(name, number):
                disk.reports.pop((number, name), None)
            case on_server.RecordNodeTests(number, reports):
                assert number in disk.models, "the model must still be there"
                for report in reports:  # the files must still be there
                    assert disk.reports[number, report.node] == report

                def record() -> None:
                    assert number not in disk.node_tests, "the tests of a round are recorded once"
                    disk.node_tests[number] = action
                    if self.plan.settings.evaluation == "nodes":
                        mean = combine({report.node: report for report in reports}, {})["mean"]
                        disk.tests[number] = tuple((name, value) for name, (value, _, _) in mean.items())
                        disk.evaluated.add(number)
                    disk.reports = {key: report for key, report in disk.reports.items() if key[0] != number}

                self.store("server", self.actions, record)

    def report_came(self, report: EvaluationReport) -> None:
        self.node_disks[report.node].orders.pop(report.round, None)  # it was delivered
        self.node_told(report.node, on_node.ReportDelivered(report.round))
        if self.disk.outcome is None:
            self.disk.reports.setdefault((report.round, report.node), report)
            self.told(on_server.NodeTested(report))

    def order_came(self, name: str, number: int, model: str) -> None:
        disk = self.node_disks[name]
        if disk.assignment is not None:
            disk.orders[number] = model
            self.node_told(name, on_node.EvaluationOrdered(number))

    def update_came(self, update: Update) -> None:
        if self.disk.outcome is None and not self.of_another_model(update):
            self.disk.updates[update.base_round, update.chunk, update.client] = update
            self.told(on_server.UpdateArrived(update))

    # -- the nodes' shells

    def announce(self, name: str, *, repeat: bool = False) -> None:
        machine = self.nodes[name]
        report = machine.report if machine is not None and not machine.ended else None
        self.message(lambda: self.told(on_server.NodeReported(name, report)))
        if repeat:
            self.node_told(name, on_node.UsePending())
            self.alive(name, 10, lambda: self.announce(name, repeat=True))

    def node_assigned(self, name: str) -> None:
        disk = self.node_disks[name]
        if disk.assignment is None and disk.final is None:
            disk.assignment = self.plan.assignment(name)
            self.start_node(name)

    def start_node(self, name: str) -> None:
        disk = self.node_disks[name]
        if disk.assignment is None:
            return
        self.busy[name] = 0
        machine = NodeMachine(disk.assignment, disk.updates)
        self.nodes[name] = machine
        self.node_actions[name] = ActionQueue(lambda action: self.node_do(name, action))
        self.node_actions[name].add(machine.begin)
        for number in disk.orders:
            self.node_told(name, on_node.EvaluationOrdered(number))
        self.scan_globals(name)

    def node_told(self, name: str, event: on_node.Event) -> None:
        machine = self.nodes[name]
        if machine is not None:
            self.node_actions[name].add(lambda: machine.handle(event))

    def node_got(self, name: str, number: int, broadcast: Broadcast, model: str) -> None:
        disk = self.node_disks[name]
        if broadcast.final:
            self.told(on_server.FinalDelivered(name))
        if disk.assignment is None:
            return
        disk.globals[number] = (broadcast, model)
        disk.unread.add(number)
        self.scan_globals(name)

    def scan_globals(self, name: str) -> None:
        """Choose the newest model in its turn, as `NodeTaskJobs.newest_global` does."""
        disk, machine = self.node_disks[name], self.nodes[name]
        assert machine is not None

        def scan() -> list[on_node.Action]:
            if not disk.globals:
                return []
            earlier = [old for old in disk.globals if old < machine.round and old not in machine.models_in_use]
            chosen = max(earlier or disk.globals)
            if machine.phase in {NodePhase.LOADING, NodePhase.READY}:
                assert chosen >= machine.round or chosen in disk.unread, "a model that was left here sets the node back"
            disk.unread.clear()
            return machine.handle(on_node.GlobalArrived(chosen, disk.globals[chosen][0]))

        self.node_actions[name].add(scan)

    def workers_idle(self, name: str, ended: int) -> None:
        """Tell a node how many of its workers are idle, of which some have just ended a job."""
        assignment = self.node_disks[name].assignment
        if assignment is None:
            return
        self.busy[name] -= ended
        self.node_told(name, on_node.WorkersIdle((assignment.slots or 1) - self.busy[name]))

    def node_do(self, name: str, action: on_node.Action) -> None:
        disk = self.node_disks[name]
        match action:
            case on_node.LoadData():
                assert disk.assignment is not None
                runs = ((disk.assignment.num_clients, 50),)

                def loaded() -> None:
                    if name in self.broken:
                        self.node_told(name, on_node.Failed("the GPU is gone"))
                        return
                    self.node_told(name, on_node.Loaded(runs))
                    self.workers_idle(name, ended=0)

                self.alive(name, self.random.uniform(0.5, 4), loaded)
            case on_node.Report():
                self.announce(name)
            case on_node.SendTestset():
                for part in ("data", "label"):
                    self.message(lambda part=part: self.testset_came(name, part))
            case on_node.TrainChunk(number, chunk):
                broadcast, model = disk.globals[number]
                assert chunk in broadcast.chunks
                self.busy[name] += 1

                def trained() -> None:
                    self.late += any(newer.used_through >= number for newer, _ in disk.globals.values())
                    for key in keys(self.plan, chunk.id, chunk.clients, number):
                        disk.updates[key] = digest(model, *key)
                    self.node_told(name, on_node.Trained(number, chunk.id))
                    self.workers_idle(name, ended=1)

                self.alive(name, self.random.uniform(0.5, 5) * self.pace[name], trained)
            case on_node.TestModel(number):
                self.test_model(name, number)
            case on_node.SendReport(_, content):
                report = EvaluationReport.model_validate_json(content)
                self.message(lambda report=report: self.report_came(report))
            case on_node.SendUpdates(number, chunk_id):
                for key in [key for key in disk.updates if key[:2] == (number, chunk_id)]:
                    update = came(name, *key, digest=disk.updates[key])
                    self.message(lambda update=update: self.update_came(update))
            case on_node.ClearUsedUpdates(through, further):
                disk.updates = {
                    key: value for key, value in disk.updates.items() if key[0] > through and key[:2] not in further
                }
            case on_node.ClearGlobals(keep, further, later):
                disk.globals = {
                    number: value
                    for number, value in disk.globals.items()
                    if number in {keep, *further} or (number > keep and not later)
                }
            case on_node.KeepFinal(number):
                model = disk.globals[number][1]

                def kept() -> None:
                    disk.final = model
                    self.node_told(name, on_node.FinalKept())

                self.alive(name, 1, kept)
            case on_node.End():

                def clear() -> None:
                    disk.assignment = None
                    disk.globals.clear()
                    disk.updates.clear()
                    disk.orders.clear()

                self.store(name, self.node_actions[name], clear)

    def test_model(self, name: str, number: int) -> None:
        model = self.node_disks[name].orders.get(number, "")
        self.busy[name] += 1

        def tested() -> None:
            if model:  # otherwise its report was delivered in the meantime
                content = report_of(name, number, model).model_dump_json()
                self.node_told(name, on_node.ModelTested(number, content))
            self.workers_idle(name, ended=1)

        self.alive(name, self.random.uniform(0.5, 5), tested)

    def testset_came(self, name: str, part: str) -> None:
        self.disk.testset.add(part)
        self.told(on_server.TestsetPartArrived(name, part))


def combined(model: str, updates: tuple[Update, ...]) -> str:
    """The model that updates make of another one; it depends on their order, and on the rounds in which they began."""
    return digest(model, [(one.base_round, one.place, one.digest, one.num_examples) for one in updates])


def keys(plan: Plan, chunk: int, clients: tuple[int, ...], number: int) -> set[tuple[int, int, int | None]]:
    if plan.uplink == Uplink.SUM:
        return {(number, chunk, None)}
    return {(number, chunk, client) for client in clients}


# ---------------------------------------------------------------- what the world shows


@pytest.mark.parametrize("strategy", ["fedavg", "median"])
def test_disasters_end_with_the_same_model(strategy: str, seeds: range) -> None:
    settings = SETTINGS.model_copy(update={"strategy": strategy})
    calm = World(settings, 0, faults=0).run()
    crashes = 0
    for seed in seeds:
        world = World(settings, seed, faults=0.3)
        assert world.run(restores=True) == calm, f"seed {seed}"
        crashes += world.crashes
    assert crashes > len(seeds), "the disasters must happen"


def test_a_node_that_breaks_down_in_disasters_holds_up_no_round_and_costs_only_its_own_clients(
    seeds: range,
) -> None:
    settings = SETTINGS.model_copy(update={"min_responses": 0.3, "round_timeout_seconds": 50_000})
    after: set[int] = set()
    for seed in seeds:
        world = World(settings, seed, faults=0.3)
        victim = world.random.choice(world.plan.nodes)
        number = world.random.randint(1, settings.num_rounds)

        def break_down(world: World = world, victim: str = victim, number: int = number) -> None:
            # A node that fails before its examples are counted ends the task.
            if world.server.counts is not None and world.server.round >= number:
                world.break_down(victim)
            else:
                world.later(1, break_down)

        world.later(1, break_down)
        world.run()
        share = next(share for share in world.plan.shares if share.node == victim)
        its_own = range(share.first_client, share.first_client + share.num_clients)
        for roster in world.rosters.values():
            assert set(roster.missing) <= set(its_own), f"seed {seed}"
            if roster.missing:
                after.add(roster.round)
        assert world.now < settings.round_timeout_seconds, f"seed {seed}: a round waited for the broken node"
    assert after == set(range(1, settings.num_rounds + 1)), "it must break down in every round"


def continuing(settings: TaskSettings, after: int, seed: int, *, faults: float) -> World:
    """A task that was complete after some rounds, and of which the server kept the last, with all of `settings`."""
    half = World(settings.model_copy(update={"num_rounds": after}), 0, faults=0)
    model = half.run()
    world = World(settings, seed, faults=faults)
    world.plan = world.plan.model_copy(update={"resumes": "f" * 32, "continued_after": after})
    done = half.disk
    world.disk = ServerDisk(
        counts=done.counts,
        models={after: model},
        evaluated=done.evaluated,
        saved=done.saved,
        tests=done.tests,
        totals=done.totals,
    )
    return world


@pytest.mark.parametrize("after", [3, pytest.param(5, marks=pytest.mark.long)])
def test_a_completed_task_that_gets_more_rounds_ends_with_the_model_of_one_run_through_disasters(
    after: int, seeds: range
) -> None:
    calm = World(SETTINGS, 0, faults=0).run()
    crashes = 0
    for seed in seeds:
        world = continuing(SETTINGS, after, seed, faults=0.3)
        assert world.run(restores=True) == calm, f"seed {seed}"
        assert {number for number in world.rosters if number <= after} == set(), "no round is trained twice"
        crashes += world.crashes
    assert crashes > 0.3 * len(seeds), "the disasters must happen"


def test_every_node_ends_with_the_final_model_and_an_empty_disk() -> None:
    world = World(SETTINGS, 1, faults=0)
    final = world.run()
    for _ in range(100):
        if not world.queue or all(disk.assignment is None for disk in world.node_disks.values()):
            break
        world.now, _, do = heapq.heappop(world.queue)
        do()
    for disk in world.node_disks.values():
        assert disk.final == final
        assert not disk.globals
        assert not disk.updates
    assert set(world.disk.models) == {SETTINGS.num_rounds}
    assert not world.disk.updates
    assert world.disk.evaluated == {0, 2, 4, 6}
    assert world.disk.saved == {3, 6}


def started(settings: TaskSettings = SETTINGS) -> tuple[TaskMachine, Plan, list[on_server.SendGlobal]]:
    """A machine in round 1, at time 0."""
    plan = plan_for(settings)
    machine = TaskMachine(plan, Restored(), own_testset=True)
    machine.begin(0)
    machine.handle(on_server.InitialModelMade(), 0)
    actions: list[on_server.Action] = []
    for share in plan.shares:
        report = TaskReport(task=UID, state="ready", num_examples=((share.num_clients, 50),))
        actions = machine.handle(on_server.NodeReported(share.node, report), 0)
    sends = [action for action in actions if isinstance(action, on_server.SendGlobal)]
    assert sends, "round 1 is open"
    return machine, plan, sends


def answers(sends: list[on_server.SendGlobal]) -> list[on_server.UpdateArrived]:
    return [
        on_server.UpdateArrived(came(send.node, send.round, chunk.id))
        for send in sends
        for chunk in send.broadcast.chunks
    ]


def test_a_round_with_everyone_closes_before_its_deadline() -> None:
    machine, _plan, sends = started()
    *first, last = answers(sends)
    for update in first:
        assert machine.handle(update, 1) == []
    roster, aggregate = machine.handle(last, 1)
    assert isinstance(roster, on_server.WriteRoster)
    assert isinstance(aggregate, on_server.AggregateRound)
    assert roster.missing == ()
    assert [update.chunk for update in roster.updates] == sorted(update.chunk for update in roster.updates)


def test_a_silent_node_is_waited_for_until_the_deadline_and_then_left_out_if_enough_answered() -> None:
    machine, _plan, sends = started(SETTINGS.model_copy(update={"min_responses": 0.5}))
    silent = sends[-1]
    for update in answers(sends[:-1]):
        assert machine.handle(update, 1) == []
    assert machine.waiting_for == (silent.node,)
    assert machine.wake_at == SETTINGS.round_timeout_seconds
    assert machine.handle(on_server.TimePassed(), SETTINGS.round_timeout_seconds - 1) == []
    roster, _ = machine.handle(on_server.TimePassed(), SETTINGS.round_timeout_seconds)
    assert isinstance(roster, on_server.WriteRoster)
    assert roster.missing == tuple(sorted(c for chunk in silent.broadcast.chunks for c in chunk.clients))


def test_too_few_answers_at_the_deadline_keep_the_round_open_and_say_for_whom() -> None:
    machine, _plan, sends = started()
    updates = answers(sends)
    for update in updates[:-1]:
        machine.handle(update, 1)
    assert machine.handle(on_server.TimePassed(), 10_000) == []
    assert machine.waiting_for == (updates[-1].update.node,)
    assert [type(action) for action in machine.handle(updates[-1], 20_000)] == [
        on_server.WriteRoster,
        on_server.AggregateRound,
    ]


def test_an_update_that_was_not_requested_is_discarded_and_changes_nothing() -> None:
    machine, plan, sends = started()
    update = answers(sends)[0].update
    other = next(name for name in plan.nodes if name != update.node)
    for wrong in (
        came(other, update.base_round, update.chunk),
        came(update.node, update.base_round + 1, update.chunk),
        came(update.node, update.base_round, 999),
        came(update.node, update.base_round, update.chunk, 3),
    ):
        assert machine.handle(on_server.UpdateArrived(wrong), 1) == [on_server.DiscardUpdate(wrong)]
    assert machine.waiting_for == tuple(send.node for send in sends)


def test_a_model_that_is_not_finite_ends_the_task_as_diverged() -> None:
    machine, _plan, sends = started()
    for update in answers(sends):
        machine.handle(update, 1)
    (finish,) = machine.handle(on_server.Aggregated(1, finite=False), 2)
    assert isinstance(finish, on_server.Finish)
    assert finish.outcome == "failed"
    assert finish.reason.startswith("diverged in round 1")
    assert machine.handle(on_server.TimePassed(), 3) == [], "nothing comes after the end"


@pytest.mark.parametrize("state", ["refused", "failed", "diverged"])
def test_what_a_node_cannot_do_ends_the_task_with_its_reason(state: str) -> None:
    machine, plan, _ = started()
    report = TaskReport.model_validate({"task": UID, "state": state, "reason": "because", "round": 1})
    (finish,) = machine.handle(on_server.NodeReported(plan.nodes[0], report), 1)
    assert isinstance(finish, on_server.Finish)
    assert finish.outcome == "failed"
    assert "because" in finish.reason


def test_a_node_whose_data_changed_during_the_task_ends_it() -> None:
    machine, plan, _ = started()
    share = plan.shares[0]
    report = TaskReport(task=UID, state="ready", num_examples=((share.num_clients, 51),))
    (finish,) = machine.handle(on_server.NodeReported(share.node, report), 1)
    assert isinstance(finish, on_server.Finish)
    assert "changed" in finish.reason


def test_a_node_that_forgot_the_task_is_reported_again() -> None:
    machine, _, sends = started()
    again = machine.handle(on_server.NodeReported(sends[0].node, None), 1)
    assert again == [on_server.Assign(sends[0].node), sends[0]]


def test_a_stop_ends_the_task_in_every_phase() -> None:
    for machine in (started()[0], TaskMachine(plan_for(SETTINGS), Restored(), own_testset=True)):
        assert machine.handle(on_server.StopRequested("enough"), 1) == [
            on_server.Finish("stopped", "enough", machine.plan.nodes)
        ]


def test_a_final_model_that_cannot_be_delivered_does_not_hold_the_end_up_for_ever() -> None:
    plan = plan_for(SETTINGS)
    last = SETTINGS.num_rounds
    done = Restored(
        committed=last,
        counts=(50,) * 12,
        kept=frozenset({last}),
        evaluated=frozenset({last}),
        saved=frozenset({last}),
    )
    machine = TaskMachine(plan, done, own_testset=True)
    sends = [action for action in machine.begin(0) if isinstance(action, on_server.SendFinal)]
    assert [send.node for send in sends] == list(plan.nodes)
    for name in plan.nodes[1:]:
        assert machine.handle(on_server.FinalDelivered(name), 1) == []
    (finish,) = machine.handle(on_server.TimePassed(), FINAL_DELIVERY_SECONDS)
    assert isinstance(finish, on_server.Finish)
    assert finish.outcome == "completed"
    assert plan.nodes[0] in finish.reason


# ---------------------------------------------------------------- the plan


def test_without_a_node_the_task_waits_and_says_so() -> None:
    plan = attempt(SETTINGS, {}, not_heard=["a"])
    assert plan == Waiting("no node is online: waiting for a")


def test_a_node_that_accepts_no_tasks_is_left_out_by_name() -> None:
    closed = hello("b").model_copy(update={"accept_tasks": False})
    plan = attempt(SETTINGS, {"a": hello("a"), "b": closed})
    assert isinstance(plan, Plan)
    assert dict(plan.left_out) == {"b": "accepts no new tasks at present (accept_tasks in its client.yml)"}
    assert [share.node for share in plan.shares] == ["a"]
    waiting = attempt(SETTINGS, {"b": closed})
    assert isinstance(waiting, Waiting)
    assert "b accepts no new tasks" in waiting.reason


def test_a_data_set_that_no_node_has_is_named_with_those_there_are() -> None:
    plan = attempt(SETTINGS.model_copy(update={"dataset": "cifar10"}), {"a": hello("a")})
    assert isinstance(plan, Waiting)
    assert "a has no data set cifar10 (it has mnist)" in plan.reason


def test_clients_are_placed_in_proportion_to_the_capacity_of_nodes() -> None:
    plan = attempt(SETTINGS, {"a": hello("a", clients=30), "b": hello("b", clients=10)})
    assert isinstance(plan, Plan)
    assert plan.placement == ((0, 9), (9, 3))


def test_nodes_with_other_data_do_not_take_part() -> None:
    other = INFO.model_copy(update={"digest": "b" * 64})
    plan = attempt(SETTINGS, {"a": hello("a"), "b": hello("b"), "c": hello("c", datasets=(other,))})
    assert isinstance(plan, Plan)
    assert plan.nodes == ("a", "b")


def test_each_bank_is_one_client_with_its_own_data() -> None:
    other = INFO.model_copy(update={"digest": "b" * 64, "num_train": 7})
    local = SETTINGS.model_copy(update={"partition": "local", "fraction_train": 1.0, "testset_from": "a"})
    plan = attempt(local, {"a": hello("a"), "b": hello("b", datasets=(other,))})
    assert isinstance(plan, Plan)
    assert plan.placement == ((0, 1), (1, 1))
    assert plan.settings.num_clients == 2
    assert plan.dataset_digest is None


def test_more_clients_than_examples_can_never_run() -> None:
    plan = attempt(SETTINGS.model_copy(update={"num_clients": 301}), {"a": hello("a", clients=1000)})
    assert isinstance(plan, Impossible)
    assert "301 clients are too many for 600 training examples" in plan.reason
    assert "at most 300 are possible" in plan.reason


def test_more_clients_than_capacity_waits_for_more_nodes() -> None:
    plan = attempt(SETTINGS.model_copy(update={"num_clients": 21}), {"a": hello("a")})
    assert isinstance(plan, Waiting)
    assert "20" in plan.reason


def test_without_any_test_set_the_task_says_how_to_get_one() -> None:
    secret = INFO.model_copy(update={"share_test": False})
    plan = attempt(SETTINGS, {"a": hello("a", datasets=(secret,))})
    assert isinstance(plan, Impossible)
    assert "share: true" in plan.reason
    served = attempt(SETTINGS, {"a": hello("a", datasets=(secret,))}, server_dataset=INFO)
    assert isinstance(served, Plan)
    assert served.testset_from is None


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"server_problem": "line 7: not a number"}, "line 7: not a number"),
        ({"server_dataset": INFO.model_copy(update={"num_test": 0})}, "it has no test set"),
    ],
)
def test_a_data_set_of_the_servers_own_that_is_broken_is_waited_for_with_its_problem(
    own: dict[str, object], told: str
) -> None:
    secret = INFO.model_copy(update={"share_test": False})
    plan = attempt(SETTINGS, {"a": hello("a", datasets=(secret,))}, **own)
    assert plan == Waiting(f"the server's own data set mnist cannot be used: {told}")
    assert isinstance(attempt(SETTINGS, {"a": hello("a")}, **own), Plan), "a node that shares helps out"


def test_a_demand_for_privacy_is_not_passed_over() -> None:
    plan = attempt(SETTINGS, {"a": hello("a", min_privacy_level="secure_aggregation")})
    assert isinstance(plan, Waiting)
    assert "secure_aggregation" in plan.reason


def test_a_node_whose_strategy_has_other_code_is_left_out_by_name() -> None:
    other = all_plugins() | {"strategies": (plugin("fedavg", version="2", digest="cd" * 16),)}
    plan = attempt(SETTINGS, {"a": hello("a"), "b": hello("b", plugins=other)})
    assert isinstance(plan, Plan)
    assert plan.nodes == ("a",)
    assert plan.plugins == chosen_plugins(SETTINGS)
    assert plan.plugins["strategy"].provenance.version == "1"
    assert attempt(SETTINGS, {"b": hello("b", plugins=other)}) == Waiting(
        "no node can take it: b has other code of the strategy fedavg: fedsim 2 (cdcdcdcd), "
        "the server has fedsim 1 (abababab)"
    )


def test_a_node_that_does_not_offer_a_chosen_plugin_is_left_out_by_name() -> None:
    few = all_plugins() | {"strategies": (plugin("fedavg"), plugin("fedprox"))}
    composed = SETTINGS.model_copy(update={"aggregation": "median"})
    assert isinstance(attempt(SETTINGS, {"b": hello("b", plugins=few)}), Plan)
    plan = attempt(composed, {"a": hello("a"), "b": hello("b", plugins=few)})
    assert isinstance(plan, Plan)
    assert plan.nodes == ("a",)
    assert attempt(composed, {"b": hello("b", plugins=few)}) == Waiting(
        "no node can take it: b does not offer the strategy median (it offers fedavg, fedprox)"
    )


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ({}, None),
        ({"strategies": ["fedavg"]}, None),
        ({"strategies": ["median", "fedprox"]}, "this institution allows the strategies median, fedprox, not fedavg"),
        ({"samplers": []}, "this institution allows the samplers none, not uniform"),
        ({"models": ["mlp"]}, "this institution allows the models mlp, not 2nn"),
    ],
)
def test_a_node_refuses_a_plugin_that_its_institution_does_not_allow(
    rules: dict[str, object], reason: str | None
) -> None:
    config = ClientConfig.model_validate(
        {
            "name": "a",
            "server": {"port": 1},
            "datasets": [{"name": "mnist", "path": "m", "share": True, "access": "open"}],
            "institution": rules,
        }
    )
    assert refusal(plan_for(SETTINGS).assignment("a"), config) == reason


def test_equal_announcements_give_equal_plans_whatever_their_order() -> None:
    names = ["a", "b", "c"]
    hellos = {name: hello(name) for name in names}
    assert attempt(SETTINGS, hellos) == attempt(SETTINGS, {name: hellos[name] for name in reversed(names)})
