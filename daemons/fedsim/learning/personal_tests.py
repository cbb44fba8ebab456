"""The test of each client's own model on what that client holds out, all clients of a node together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fedsim.evaluation import Estimate
from fedsim.learning.evaluate import model_outputs
from fedsim.learning.examples import FloatArray
from fedsim.learning.held_out import ClientsHeldOut
from fedsim.learning.networks import TaskNetwork, as_tensor, load_vector, split_vector
from fedsim.learning.node_evaluation import estimates
from fedsim.learning.objectives import Objective
from fedsim.learning.tensor_roles import TensorRoles, named_tensors
from fedsim.update import PERSONAL, PERSONAL_ROUNDS, Arrays

LoadsVector = Callable[[nn.Module, FloatArray, TensorRoles], None]
"""`load_vector`, or `point_to` for vectors that are files."""


def evaluate_own_models(
    network: TaskNetwork,
    vector: FloatArray,
    held_out: ClientsHeldOut,
    clients: range,
    state_of: Callable[[int], Arrays],
    objective: Objective,
    seed: tuple[int, ...],
    *,
    load: LoadsVector = load_vector,
) -> tuple[int, dict[str, Estimate]]:
    """Test the clients' own models; each example counts once, with the model of the client that holds it out.

    A client's own model is the global one with the client's personal tensors, or the whole model that it keeps. One
    that has not trained yet has the personal tensors as initialised, or the global model. One network is in memory.

    Args:
        network: of the task, with its personal tensors as initialised; they are put back.
        vector: float32 [P], the round's global model.
        held_out: what the node's clients hold out.
        clients: of the node, in their order.
        state_of: returns what a client kept after the round, or zeros.
        objective: gives the loss and the metrics.
        seed: as of `evaluate_with_intervals`.
        load: sets the tensors of the network's flat vector.

    Returns:
        The number of examples and the metrics with their intervals; these are empty without examples.

    Raises:
        BadInput: a label is not one of the model's.
    """
    roles, model = network.roles, network.model
    tensors = [named_tensors(model)[name] for name in roles.own]
    initial = [tensor.detach().clone() for tensor in tensors]
    shapes = {name: roles.shapes[name] for name in roles.own}
    outputs, targets = [], []
    load(model, vector, roles)
    for client in clients:
        examples = held_out.of_client(client)
        if not len(examples):
            continue
        state = state_of(client)
        trained = bool(state[PERSONAL_ROUNDS][0])
        if roles.whole:
            load(model, state[PERSONAL] if trained else vector, roles)
        else:
            _set(tensors, split_vector(as_tensor(state[PERSONAL]), shapes) if trained else initial)
        outputs.append(model_outputs(model, examples))
        targets.append(torch.from_numpy(examples.labels.copy()))
    _set(tensors, initial)
    if not outputs:
        return 0, {}
    together, kind = torch.cat(targets), held_out.examples.targets
    return len(together), estimates(torch.cat(outputs), together, kind, objective, seed)


def _set(tensors: list[torch.Tensor], parts: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part)
