"""Any module trains: what a task does with statistics, frozen, tied, integer and half-precision tensors of a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tensor_networks as networks
import torch
from tensor_networks import CLASSES, INPUTS, SETTINGS, data, federated
from torch import nn

from fedsim import plugins
from fedsim.array_layout import Layout
from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.errors import BadInput
from fedsim.learning.aggregate import SharedStatistics, aggregate, initial_state, model_digest
from fedsim.learning.engines import ClientData
from fedsim.learning.engines.batched import BatchedEngine
from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.learning.evaluate import evaluate, predict
from fedsim.learning.fixed_arrays import frozen_digest
from fedsim.learning.models import Model
from fedsim.learning.networks import TaskNetwork, build_model, initial_vector, load_vector, point_to, task_network
from fedsim.learning.partitions import make_partition
from fedsim.learning.simulate import SimulationResult, simulate
from fedsim.learning.strategies import make_strategy
from fedsim.learning.strategies.fedavgm import FedAvgM
from fedsim.learning.tensor_roles import roles_of
from fedsim.messages import Assignment, EngineInfo, ModelSpec
from fedsim.settings import TaskSettings
from fedsim.spool.layout import TENSORS_FILE
from fedsim.spool.npy import hash_file, write_vector
from fedsim.spool.updates import update_path
from fedsim.update import Update
from fedsim.worker import jobs
from fedsim.worker.checkpoint import load_checkpoint
from fedsim.worker.node_jobs import NodeJobs
from fedsim.worker.server_jobs import ServerJobs

pytestmark = pytest.mark.usefixtures("deterministic_torch")
SPEC = ModelSpec(name="of_test", feature_shape=(INPUTS,), num_classes=CLASSES)


def made(model: Model) -> Callable[[], nn.Module]:
    """Makes the network with which a task of `SETTINGS` begins."""
    return lambda: build_model(SPEC, model, seed=SETTINGS.seed_of_model)


def tensors_of(result: SimulationResult, model: Model, **rules: Any) -> dict[str, np.ndarray]:
    return dict(Layout(roles_of(made(model)(), **rules).flat_shapes).views(result.vector))


def assert_equal(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        assert np.allclose(found[name], expected[name].float(), rtol=tolerance, atol=tolerance), name


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize("model", [networks.Normalised(), networks.Cumulative()], ids=["momentum", "cumulative"])
def test_averaged_statistics_are_the_mean_of_the_clients(model: Model) -> None:
    result = simulate(SETTINGS, data(), model=model)
    expected, _ = federated(made(model))
    assert {"1.running_mean", "1.running_var"} <= expected.keys()
    assert_equal(tensors_of(result, model), expected)


def test_local_statistics_stay_with_their_clients() -> None:
    model = networks.Normalised()
    statistics = ["1.running_mean", "1.running_var"]
    result = simulate(SETTINGS.model_copy(update={"statistics": "local"}), data(), model=model)
    expected, kept = federated(made(model), personal=statistics)
    assert_equal(tensors_of(result, model, statistics="local"), expected)
    for client, own in kept.items():
        found = result.client_states[client]
        assert np.allclose(found["personal"], np.concatenate([own[name] for name in statistics]), rtol=1e-6, atol=1e-6)
        assert found["personal_rounds"].tolist() == [3.0]


def test_frozen_statistics_are_used_and_stay_as_they_were() -> None:
    def mode(network: nn.Module) -> None:
        network.train()
        network.get_submodule("1").eval()

    model = networks.Normalised()
    result = simulate(SETTINGS.model_copy(update={"statistics": "frozen"}), data(), model=model)
    found = tensors_of(result, model)
    assert_equal(found, federated(made(model), mode=mode)[0])
    assert found["1.running_var"].tolist() == [1.0] * 5


@pytest.mark.parametrize("frozen", [False, True])
def test_the_server_takes_no_step_with_statistics(frozen: bool) -> None:
    rng = np.random.default_rng(1)
    received, *updates = (rng.normal(size=7).astype(np.float32) for _ in range(4))
    weights, strategy = [1.0, 2.0, 5.0], FedAvgM(FedAvgM.Options(momentum=0.9, learning_rate=2.0))
    for block in (1, 3, 5, 7):
        state = {name: np.full(7, 0.5, np.float32) for name in strategy.server_state}
        out, state_out = np.empty_like(received), initial_state(strategy, 7)
        rule = SharedStatistics(3, frozen)
        aggregate(strategy, received, updates, weights, state, out, state_out, block=block, statistics=rule)
        mean = np.average(np.stack(updates).astype(np.float64), axis=0, weights=weights)
        stepped = np.empty_like(received)
        aggregate(strategy, received, updates, weights, state, stepped, initial_state(strategy, 7))
        assert np.array_equal(out[:4], stepped[:4])
        assert not np.allclose(stepped, mean)
        assert np.array_equal(out[4:], received[4:] if frozen else mean[4:].astype(np.float32))
        assert all(array[4:].tolist() == [0.5] * 3 for array in state_out.values())


def test_a_test_uses_the_averaged_statistics() -> None:
    model = networks.Normalised()
    result = simulate(SETTINGS, data(), model=model)
    network = made(model)()
    load_vector(network, result.vector)
    tested = evaluate(network, data().train)
    assert not network.training
    assert tested.metrics == result.rounds[-1].metrics
    one_by_one = np.concatenate([predict(network, row[None]) for row in data().train.features])
    assert np.allclose(predict(network, data().train.features), one_by_one, atol=1e-6)


def test_the_trial_before_the_first_round_leaves_statistics_alone() -> None:
    model = networks.Normalised()
    vector = initial_vector(SPEC, 5, model)
    assert vector[-10:].tolist() == [0.0] * 5 + [1.0] * 5


def test_a_rule_for_statistics_that_a_model_does_not_have_is_refused() -> None:
    with pytest.raises(BadInput, match="model logistic keeps no statistics: leave the setting statistics at average"):
        simulate(SETTINGS.model_copy(update={"statistics": "local"}), data(), model="logistic")


def test_a_last_batch_that_batch_normalisation_cannot_take_is_named() -> None:
    settings = SETTINGS.model_copy(update={"local_batch_size": 19})
    with pytest.raises(BadInput, match=r"single example of a last batch of client 0 .*choose a local_batch_size"):
        simulate(settings, data(), model=networks.Normalised())


# ---------------------------------------------------------------- frozen, integer, tied


def test_a_frozen_base_is_built_on_each_host_and_never_sent() -> None:
    model = networks.FrozenBase()
    result = simulate(SETTINGS, data(), model=model)
    expected, _ = federated(made(model))
    assert "0.weight" not in expected
    assert_equal(tensors_of(result, model), expected)
    here, there, other = (
        task_network(SPEC, SETTINGS.model_copy(update={"model_seed": seed}), model=model) for seed in (5, 5, 6)
    )
    assert here.roles.fixed == ("0.weight", "0.bias", "mask", "1.num_batches_tracked")
    built = made(model)()
    for name in here.roles.fixed:
        assert torch.equal(here.model.state_dict()[name], built.state_dict()[name])
    assert frozen_digest(here) == frozen_digest(there) != frozen_digest(other)
    assert frozen_digest(task_network(SPEC, SETTINGS, model=networks.Normalised())) == ""


def test_a_start_with_another_frozen_base_is_refused() -> None:
    model = networks.FrozenBase()
    state = {name: tensor.clone() for name, tensor in made(model)().state_dict().items()}
    begun = simulate(SETTINGS.model_copy(update={"num_rounds": 1}), data(), model=model, initial=state)
    assert begun.rounds[0].digest == simulate(SETTINGS, data(), model=model).rounds[0].digest
    state["1.num_batches_tracked"] += 1  # as in a model that was trained elsewhere
    simulate(SETTINGS.model_copy(update={"num_rounds": 1}), data(), model=model, initial=state)
    for name in ("0.bias", "mask"):
        with pytest.raises(BadInput, match=f"initial has other numbers in {name}, which the model freezes"):
            simulate(SETTINGS, data(), model=model, initial={**state, name: state[name] + 1})


def test_a_tied_tensor_is_in_the_vector_once() -> None:
    model = networks.Tied()
    result = simulate(SETTINGS, data(), model=model)
    expected, _ = federated(made(model))
    assert roles_of(made(model)()).aliases == {"two.weight": "one.weight"}
    assert expected.pop("two.weight").equal(expected["one.weight"])
    assert_equal(tensors_of(result, model), expected)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: nn.Linear(4, 2).double(), r"weight is torch\.float64, bias is torch\.float64; .*model\.float"),
        (lambda: nn.Linear(4, 2).requires_grad_(False), "all its parameters are frozen"),
        (lambda: nn.LazyLinear(2), "weight, bias has no shape yet .a lazy layer.: give the layer"),
        (lambda: nn.BatchNorm1d(4).double(), r"weight is torch\.float64"),
    ],
)
def test_a_network_that_cannot_be_averaged_is_refused(network: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(BadInput, match=f"model odd: {message}"):
        roles_of(network(), name="odd")


# ---------------------------------------------------------------- half precision


def test_half_precision_follows_a_vector_of_float32() -> None:
    """Steps are taken in float32 and rounded: otherwise a small step would be lost."""
    model = networks.Half()
    settings = SETTINGS.model_copy(update={"num_rounds": 1, "num_clients": 1, "local_learning_rate": 1e-3})
    result = simulate(settings, data(), model=model)
    network, examples = made(model)(), data().train
    exact = {name: parameter.detach().float() for name, parameter in network.named_parameters()}
    own = ClientData(settings, examples, make_partition(settings, examples.labels))
    x, y = (torch.from_numpy(array) for array in own.examples(0))
    for epoch in own.epochs(1, 0):
        for batch in torch.from_numpy(epoch).split(settings.local_batch_size):
            outputs = network(x[batch].bfloat16()).float()
            gradients = torch.autograd.grad(nn.functional.cross_entropy(outputs, y[batch]), [*network.parameters()])
            for (name, parameter), gradient in zip(network.named_parameters(), gradients, strict=True):
                exact[name] -= settings.local_learning_rate * gradient.float()
                parameter.data = exact[name].bfloat16()
    expected = exact | {name: network.state_dict()[name] for name in ("1.running_mean", "1.running_var")}
    assert_equal(tensors_of(result, model), expected)
    moved = np.abs(result.vector - initial_vector(SPEC, 5, model)) > 0
    assert moved.mean() > 0.9
    point_to(network, result.vector)
    assert network.get_parameter("0.weight").dtype == torch.bfloat16
    assert result.rounds[-1].metrics == evaluate(network, examples).metrics


# ---------------------------------------------------------------- engines


def test_the_batched_engine_trains_what_it_cannot_batch_one_by_one() -> None:
    for model in (networks.Normalised(), networks.FrozenBase(), networks.Half()):
        one, two = (
            simulate(SETTINGS, data(), model=model, engine=engine) for engine in (BatchedEngine, SequentialEngine)
        )
        assert one.digest == two.digest


def test_only_linear_layers_that_are_frozen_are_not_batched() -> None:
    def network(shape: tuple[int, ...], classes: int) -> nn.Module:
        made = nn.Sequential(nn.Linear(*shape, 3), nn.ReLU(), nn.Linear(3, classes))
        made[0].requires_grad_(False)
        return made

    one, two = (
        simulate(SETTINGS, data(), model=network, engine=engine) for engine in (BatchedEngine, SequentialEngine)
    )
    assert one.digest == two.digest


# ---------------------------------------------------------------- workers and checkpoints


@pytest.fixture(params=["Normalised", "FrozenBase", "Tied", "Half"])
def installed(request: pytest.FixtureRequest) -> Iterator[type[Model]]:
    point = EntryPoint(SPEC.name, f"tensor_networks:{request.param}", plugins.MODELS)
    with plugins.registered(plugins.MODELS, point):
        yield getattr(networks, request.param)


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    examples = data().train
    np.savez(tmp_path / "own.npz", x_train=examples.features, y_train=examples.labels)
    return tmp_path


OWN = {"name": "own", "path": "own.npz", "test_share": 0.2, "access": "open"}
STEPPING = SETTINGS.model_copy(
    update={"model": SPEC.name, "dataset": "own", "server_step": "fedavgm", "server_step_options": {"momentum": 0.5}}
)


def train_on_workers(settings: TaskSettings, folder: Path) -> Path:
    """Rounds of one node and the server with fresh workers in each round; returns the folder of the last round."""
    own = DataSetConfig.model_validate(OWN)
    assignment = Assignment(
        uplink=make_strategy(settings).uplink,
        task="5" * 32,
        number=1,
        settings=settings,
        first_client=0,
        num_clients=settings.num_clients,
        model_spec=SPEC,
        engine=EngineInfo(),
    )
    shape = {"settings": settings, "model_spec": SPEC}
    reply = ServerJobs(1).do(jobs.MakeInitialModel.model_validate({**shape, "out": folder / "0"}))
    for number in range(1, settings.num_rounds + 1):
        node, base = NodeJobs(1), folder / str(number - 1)
        assert isinstance(reply, jobs.ModelMade)
        node.do(jobs.Load(assignment=assignment, dataset=own, folder=folder, min_examples=1))
        clients = tuple(range(settings.num_clients))
        trained = node.do(
            jobs.Train(round=number, chunk=0, clients=clients, model=base / "model.npy", out=folder / "n")
        )
        assert isinstance(trained, jobs.ChunkTrained)
        files = tuple(update_path(folder / "n", update) for update in trained.updates)
        given = {"updates": trained.updates, "files": files, "digests": reply.files}
        reply = ServerJobs(1).do(
            jobs.Aggregate(settings=settings, round=number, base=base, out=folder / str(number), **given)
        )
    return folder / str(settings.num_rounds)


def test_workers_give_what_one_process_gives(installed: type[Model], lab: Path) -> None:
    last = train_on_workers(STEPPING, lab)
    dataset = load_dataset(DataSetConfig.model_validate(OWN), lab)
    expected = simulate(STEPPING, dataset)
    assert np.array_equal(np.load(last / "model.npy"), expected.vector)
    roles = task_network(SPEC, STEPPING).roles
    counted = json.loads((last / TENSORS_FILE).read_text())["statistics"] if roles.statistics else 0
    assert counted == roles.shared_statistics.count == (0 if installed is networks.Tied else 10)
    own = DataSetConfig.model_validate(OWN)
    tested = ServerJobs(1).do(
        jobs.Evaluate(
            settings=STEPPING,
            model_spec=SPEC,
            round=3,
            model=last / "model.npy",
            testset=jobs.TestSetFiles(dataset=own, folder=lab),
        )
    )
    assert isinstance(tested, jobs.Tested)
    assert tested.metrics == pytest.approx(expected.rounds[-1].metrics)


def test_a_node_that_builds_another_frozen_base_is_named(lab: Path) -> None:
    settings = STEPPING.model_copy(update={"num_rounds": 1})
    with plugins.registered(plugins.MODELS, EntryPoint(SPEC.name, "tensor_networks:FrozenBase", plugins.MODELS)):
        train_on_workers(settings, lab)
        (path,) = (lab / "n").glob("**/*.npy")
        digest = hash_file(path)
        update = Update(
            base_round=1, num_clients=3, num_examples=48, node="node-b", digest=digest, frozen_digest="0" * 64
        )
        job = jobs.Aggregate(
            settings=settings, round=1, base=lab / "0", updates=(update,), files=(path,), out=lab / "again"
        )
        with pytest.raises(
            BadInput, match="node-b trained with other frozen tensors than the server: install the same version"
        ):
            ServerJobs(1).do(job)


def test_a_checkpoint_holds_what_load_state_dict_needs(installed: type[Model], tmp_path: Path) -> None:
    network = task_network(SPEC, STEPPING)
    vector = np.random.default_rng(2).random(network.roles.flat_size, np.float32)
    write_vector(tmp_path / "model.npy", vector)
    path = tmp_path / "out.safetensors"
    save = jobs.SaveCheckpoint(
        settings=STEPPING, model_spec=SPEC, round=1, model=tmp_path / "model.npy", out=path, about={}
    )
    ServerJobs(1).do(save)
    load_vector(network.model, vector, network.roles)
    other = installed().build((INPUTS,), CLASSES)
    other.load_state_dict(safetensors.torch.load_file(path), strict=True)
    loaded, spec = load_checkpoint(path)
    assert spec == SPEC
    for name, tensor in network.model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
        assert torch.equal(loaded.state_dict()[name], tensor), name
    again = tmp_path / "again.safetensors"
    metadata = {"fedsim": SPEC.model_dump_json()}
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, again, metadata)
    assert path.read_bytes() == again.read_bytes(), "as the library writes it"


def test_a_task_starts_from_such_a_checkpoint(installed: type[Model], tmp_path: Path) -> None:
    network = task_network(SPEC, STEPPING)
    vector = np.random.default_rng(2).random(network.roles.flat_size, np.float32)
    write_vector(tmp_path / "model.npy", vector)
    path = tmp_path / "out.safetensors"
    about = {"settings": STEPPING, "model_spec": SPEC, "round": 1, "about": {}}
    ServerJobs(1).do(jobs.SaveCheckpoint.model_validate({**about, "model": tmp_path / "model.npy", "out": path}))
    settings = STEPPING.model_copy(update={"num_rounds": 1, "initial": "file out.safetensors"})
    result = simulate(settings, data(), model=installed, initial=path)
    assert result.rounds[0].digest == model_digest(vector)


def test_the_network_of_a_task_is_named_with_its_roles() -> None:
    network = task_network(SPEC, SETTINGS, model=networks.Tied())
    assert isinstance(network, TaskNetwork)
    assert network.roles.flat_size == 4 * 4 + 4 + 4 + 4 * 2 + 2
