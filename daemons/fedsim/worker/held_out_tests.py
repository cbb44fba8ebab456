"""Tests of models on a node's held-out examples, in one of its workers: the global model, or each client's own."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property

from fedsim.errors import BadInput
from fedsim.evaluation import Estimate, EvaluationReport
from fedsim.learning.aggregate import client_layout
from fedsim.learning.common_scale import apply_scale
from fedsim.learning.examples import DataSet
from fedsim.learning.held_out import ClientsHeldOut, held_out_of
from fedsim.learning.networks import point_to, task_network
from fedsim.learning.node_evaluation import evaluate_with_intervals
from fedsim.learning.objectives import make_objective
from fedsim.learning.partitions import Partition
from fedsim.learning.personal_tests import evaluate_own_models
from fedsim.learning.strategies import Strategy
from fedsim.learning.tensor_roles import TensorRoles
from fedsim.messages import Assignment, as_text
from fedsim.spool.client_states import StatesOnDisk
from fedsim.spool.npy import check_digest, open_vector
from fedsim.update import PERSONAL_ROUNDS, Arrays
from fedsim.worker.evaluation_jobs import HeldOutTested, TestHeldOut

TOO_FEW = "fewer held-out examples than this institution lets numbers leave of"


class HeldOutTests:
    """The tests of one task.

    Args:
        assignment: of the task.
        dataset: of the node.
        strategy: of the task.
        roles: of its model's tensors; where clients keep some, their own models are tested.
        partition: of the training examples among the clients.
        block_size: of guarded data, else 1.
    """

    def __init__(
        self,
        assignment: Assignment,
        dataset: DataSet,
        strategy: Strategy,
        roles: TensorRoles,
        partition: Partition,
        block_size: int,
    ) -> None:
        self._assignment = assignment
        self._dataset = dataset
        self._strategy = strategy
        self._roles = roles
        self._partition = partition
        self._block_size = block_size

    @cached_property
    def _of_clients(self) -> ClientsHeldOut | None:
        """What each client holds out, where clients keep tensors."""
        if not self._roles.kept_size:
            return None
        return ClientsHeldOut.of(self._dataset, self._partition, self._block_size)

    @property
    def _clients(self) -> range:
        first = self._assignment.first_client
        return range(first, first + self._assignment.num_clients)

    def test(self, job: TestHeldOut) -> HeldOutTested:
        """Test a model; its report withholds the numbers where there are too few examples, or a test is impossible."""
        started, assignment = time.monotonic(), self._assignment
        report = EvaluationReport(task=assignment.task, node=job.node, round=job.round, metrics={})
        if job.digest is not None:
            check_digest(job.model, job.digest)
        if withheld := self._why_withheld(job):
            report = report.model_copy(update={"withheld": withheld})
        else:
            try:
                count, metrics = self._metrics(job)
                report = report.model_copy(update={"num_examples": count, "metrics": metrics})
            except BadInput as error:
                report = report.model_copy(update={"withheld": as_text(str(error))})
        return HeldOutTested(round=job.round, report=report, seconds=time.monotonic() - started)

    def _why_withheld(self, job: TestHeldOut) -> str:
        examples, clients = held_out_of(self._dataset), self._of_clients
        if examples is None:
            return "no held-out examples"
        count = len(examples)
        if clients is not None:
            count = clients.num_examples(self._assignment.first_client, self._assignment.num_clients)
        return TOO_FEW if count < job.min_examples else ""

    def _metrics(self, job: TestHeldOut) -> tuple[int, dict[str, Estimate]]:
        examples, settings = held_out_of(self._dataset), self._assignment.settings
        if examples is None:
            return 0, {}
        network = task_network(self._assignment.model_spec, settings, self._strategy)
        vector, objective = open_vector(job.model), make_objective(settings)
        seed = settings.seed, job.round, self._assignment.first_client
        scaled = apply_scale(examples, job.scale)
        if self._of_clients is None:
            point_to(network.model, vector, network.roles)
            return len(examples), evaluate_with_intervals(network.model, scaled, objective, seed)
        layout = client_layout(self._strategy, len(vector), network.roles.kept_size)
        states = StatesOnDisk(job.states, layout, job.round + 1, 0)

        def kept(client: int) -> Arrays:
            state = states.read(client)
            if not state[PERSONAL_ROUNDS][0] and states.oldest(client)[PERSONAL_ROUNDS][0] > 1:
                raise BadInput(f"what client {client} kept after round {job.round} is no longer on this node")
            return state

        held_out = replace(self._of_clients, examples=scaled)
        return evaluate_own_models(network, vector, held_out, self._clients, kept, objective, seed, load=point_to)
