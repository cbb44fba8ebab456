"""Strategies with arrays of their own: what goes down, what clients keep, and what a crash may not cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.array_layout import Layout
from fedsim.config import DataSetConfig
from fedsim.errors import BadInput
from fedsim.learning.aggregate import split_received
from fedsim.learning.components import Components
from fedsim.learning.engines import ClientData, ClientTrainer
from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.learning.examples import DataSet, Examples
from fedsim.learning.networks import build_model, initial_vector, load_vector, vector_of
from fedsim.learning.partitions import make_partition
from fedsim.learning.simulate import simulate
from fedsim.learning.strategies import make_strategy
from fedsim.learning.strategies.scaffold import CHANGE, CONTROL
from fedsim.messages import Assignment, EngineInfo, ModelSpec, Uplink
from fedsim.settings import TaskSettings
from fedsim.spool.client_states import ENDED, SENDER, StatesOnDisk, keep_states, settle_states, take_states
from fedsim.spool.layout import BROADCAST_FILE
from fedsim.spool.npy import open_vector
from fedsim.spool.updates import UpdateIndex, update_path, write_update
from fedsim.update import PARAMETERS, Update
from fedsim.worker import jobs
from fedsim.worker.node_jobs import NodeJobs
from fedsim.worker.server_jobs import ServerJobs

LAYOUT = Layout({"control": (4,)})
SETTINGS = TaskSettings(
    dataset="digits",
    model="logistic",
    partition="iid",
    num_clients=4,
    fraction_train=1.0,
    local_epochs=1,
    num_rounds=3,
    strategy="scaffold",
)


pytestmark = pytest.mark.usefixtures("deterministic_torch")


# ---------------------------------------------------------------- SCAFFOLD


def _data() -> DataSet:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 4)).astype(np.float32)
    return DataSet(Examples(features, (features[:, 0] > 0).astype(np.int64)), None, 2)


LOGISTIC = ModelSpec(name="logistic", feature_shape=(4,), num_classes=2)


def _trainer(settings: TaskSettings, data: DataSet) -> ClientTrainer:
    own = ClientData(settings, data.train, make_partition(settings, data.train.labels))
    return SequentialEngine().start(own, LOGISTIC, Components.of(settings), "cpu")


def test_scaffold_is_algorithm_1_of_its_paper_with_option_ii() -> None:
    data = _data()
    chosen = {"num_clients": 3, "local_batch_size": 7, "local_epochs": 2, "local_learning_rate": 0.1}
    settings = SETTINGS.model_copy(update={**chosen, "strategy_options": {"learning_rate": 0.7}, "num_rounds": 4})
    settings = settings.model_copy(update={"fraction_train": 0.67})  # two of three clients in each round
    result = simulate(settings, data)

    engine = _trainer(settings, data)
    x = initial_vector(LOGISTIC, settings.seed).astype(np.float64)
    c, own = np.zeros_like(x), {client: np.zeros_like(x) for client in range(3)}
    model = build_model(LOGISTIC)
    for number in range(1, 5):
        cohort = settings.plugin("sampler").draw(settings.seed, number, 3, 2)
        moved, changed = [], []
        for client in cohort:
            load_vector(model, x.astype(np.float32))
            features, labels = (torch.from_numpy(array) for array in engine.data.examples(client))
            steps = 0
            for order in torch.from_numpy(engine.data.batch_order(number, client)):
                for batch in order.split(7):
                    loss = nn.functional.cross_entropy(model(features[batch]), labels[batch])
                    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
                    y = vector_of(model) - 0.1 * (gradient.numpy() - own[client] + c)
                    load_vector(model, y.astype(np.float32))
                    steps += 1
            new = own[client] - c + (x - y) / (steps * 0.1)
            moved.append(y - x)
            changed.append(new - own[client])
            own[client] = new
        x = x + 0.7 * np.mean(moved, axis=0)
        c = c + 2 / 3 * np.mean(changed, axis=0)
    assert np.allclose(result.vector, x, atol=1e-5)
    assert np.allclose(result.state[CONTROL], c, atol=1e-4)
    assert all(np.allclose(result.client_states[client][CONTROL], own[client], atol=1e-4) for client in own)
    assert np.allclose(c, np.mean(list(own.values()), axis=0)), "the server's is the mean of the clients'"


def test_parts_that_lack_an_array_are_not_combined() -> None:
    settings = SETTINGS.model_copy(update={"server_step": "fedavgm"})
    with pytest.raises(BadInput, match="scaffold needs the array control, which the server step fedavgm does not give"):
        make_strategy(settings)
    settings = TaskSettings(server_step="scaffold")
    with pytest.raises(BadInput, match="scaffold needs the array control_change, which the strategy fedavg does not"):
        make_strategy(settings)
    composed = make_strategy(SETTINGS.model_copy(update={"aggregation": "median"}))
    assert (composed.uplink, composed.client_state) == (Uplink.EACH_CLIENT, (CONTROL,))


# ---------------------------------------------------------------- states as files


def _state(value: float) -> dict[str, np.ndarray]:
    return {"control": np.full(4, value, np.float32)}


def _write(folder: Path, update: Update) -> None:
    write_update(folder, update.with_arrays({PARAMETERS: np.ones(2, np.float32)}), Layout({PARAMETERS: (2,)}))


def _trained(folder: Path, number: int, value: float, *, client: int | None = None) -> None:
    """Client 7 trains in chunk 1 of a round, as a worker does it: state, update, adoption."""
    states = StatesOnDisk(folder, LAYOUT, number, 1)
    states.write(7, _state(value))
    _write(folder, Update(base_round=number, chunk=1, client=client, num_examples=3))
    states.adopt([7])


def _read(folder: Path, number: int) -> float:
    return float(StatesOnDisk(folder, LAYOUT, number, 1).read(7)["control"][0])


def test_a_client_starts_with_its_newest_state_of_an_earlier_round(tmp_path: Path) -> None:
    assert _read(tmp_path, 1) == 0, "zeros at first"
    _trained(tmp_path, 1, 10)
    _trained(tmp_path, 4, 40)
    assert [_read(tmp_path, number) for number in (1, 2, 4, 5, 9)] == [0, 10, 10, 40, 40]
    assert np.array_equal(StatesOnDisk(tmp_path, LAYOUT, 9, 1).read(8)["control"], np.zeros(4)), "another client's"
    _trained(tmp_path, 5, 50)
    assert len(list(tmp_path.glob("clients/*/*.npy"))) == 2, "what no round can need any more is removed"
    _trained(tmp_path, 999_999, 60)
    _trained(tmp_path, 1_000_000, 70)
    assert [_read(tmp_path, number) for number in (1_000_000, 1_000_001)] == [60, 70], "by number, not by name"


def test_a_round_that_is_trained_again_starts_with_the_same_state(tmp_path: Path) -> None:
    _trained(tmp_path, 1, 10)
    _trained(tmp_path, 2, 20)
    assert _read(tmp_path, 2) == 10
    _trained(tmp_path, 2, 20)
    assert (_read(tmp_path, 2), _read(tmp_path, 3)) == (10, 20)


@pytest.mark.parametrize("client", [None, 7])
def test_a_state_counts_after_a_crash_exactly_if_its_update_was_written(tmp_path: Path, client: int | None) -> None:
    _trained(tmp_path, 1, 10, client=client)
    states = StatesOnDisk(tmp_path, LAYOUT, 2, 1)
    states.write(7, _state(20))
    assert _read(tmp_path, 3) == 10, "it is not adopted"
    settle_states(tmp_path, UpdateIndex(tmp_path).open())
    assert _read(tmp_path, 3) == 10, "its update was not written"
    assert not list(tmp_path.glob("clients/new/*"))
    states.write(7, _state(20))
    update = Update(base_round=2, chunk=1, client=client, num_examples=3)
    _write(tmp_path, update)
    settle_states(tmp_path, UpdateIndex(tmp_path).open())
    assert _read(tmp_path, 3) == 20
    assert _read(tmp_path, 2) == 10


def test_an_update_of_another_chunk_or_client_adopts_nothing(tmp_path: Path) -> None:
    StatesOnDisk(tmp_path, LAYOUT, 2, 1).write(7, _state(20))
    for chunk, client in ((2, None), (1, 8)):
        update = Update(base_round=2, chunk=chunk, client=client, num_examples=3)
        _write(tmp_path, update)
    settle_states(tmp_path, UpdateIndex(tmp_path).open())
    assert _read(tmp_path, 3) == 0


@pytest.mark.parametrize("client", [None, 7])
def test_what_a_sender_keeps_is_adopted_with_its_update_and_is_not_the_clients(
    tmp_path: Path, client: int | None
) -> None:
    sender = StatesOnDisk(tmp_path, LAYOUT, 2, 1, owner=SENDER)
    StatesOnDisk(tmp_path, LAYOUT, 2, 1).write(7, _state(20))
    sender.write(7, _state(30))
    settle_states(tmp_path, UpdateIndex(tmp_path).open())
    assert not list(tmp_path.glob("clients/new/*")), "no update was written"
    StatesOnDisk(tmp_path, LAYOUT, 2, 1).write(7, _state(20))
    sender.write(7, _state(30))
    _write(tmp_path, Update(base_round=2, chunk=1, client=client, num_examples=3))
    settle_states(tmp_path, UpdateIndex(tmp_path).open())
    assert _read(tmp_path, 3) == 20
    assert StatesOnDisk(tmp_path, LAYOUT, 3, 1, owner=SENDER).read(7)["control"].tolist() == [30.0] * 4
    assert not StatesOnDisk(tmp_path, LAYOUT, 2, 1, owner=SENDER).read(7)["control"].any()


# ---------------------------------------------------------------- the workers


def _worker(folder: Path, first: int) -> NodeJobs:
    assignment = Assignment(
        uplink=Uplink.SUM,
        task="5" * 32,
        number=1,
        settings=SETTINGS,
        first_client=first,
        num_clients=2,
        model_spec=ModelSpec.of(SETTINGS, (8, 8), 10),
        engine=EngineInfo(),
    )
    data = DataSetConfig.model_validate({"name": "digits", "path": "digits", "format": "digits"})
    worker = NodeJobs(1)
    worker.do(jobs.Load(assignment=assignment, dataset=data, folder=folder, min_examples=1))
    return worker


def test_workers_that_lose_their_memory_in_every_round_train_what_one_process_trains(tmp_path: Path) -> None:
    from fedsim.data import load_dataset  # noqa: PLC0415

    data = DataSetConfig.model_validate({"name": "digits", "path": "digits", "format": "digits"})
    expected = simulate(SETTINGS, load_dataset(data, tmp_path), placement=[(0, 2), (2, 2)], chunk_clients=2)
    server = ServerJobs(1)
    shape = {"settings": SETTINGS, "model_spec": ModelSpec.of(SETTINGS, (8, 8), 10)}
    made = server.do(jobs.MakeInitialModel.model_validate({**shape, "out": tmp_path / "0"}))
    for number in (1, 2, 3):
        sent = tmp_path / str(number - 1) / BROADCAST_FILE
        updates, files = [], []
        for chunk, node in enumerate(("a", "b")):
            clients = (2 * chunk, 2 * chunk + 1)
            folder = tmp_path / node
            train = jobs.Train(round=number, chunk=chunk, clients=clients, model=sent, out=folder)
            replies = [_worker(tmp_path, 2 * chunk).do(train) for _ in range(2)]  # again, as after a crash
            assert isinstance(replies[0], jobs.ChunkTrained)
            assert isinstance(replies[1], jobs.ChunkTrained)
            assert replies[0].updates == replies[1].updates
            updates += replies[0].updates
            files += [update_path(folder, update) for update in replies[0].updates]
        aggregated = jobs.Aggregate(
            settings=SETTINGS,
            round=number,
            base=tmp_path / str(number - 1),
            updates=tuple(updates),
            files=tuple(files),
            out=tmp_path / str(number),
        )
        made = server.do(aggregated)
        assert isinstance(made, jobs.ModelMade)
        assert "broadcast.npy" in made.files
        assert made.digest == expected.rounds[number].digest
    strategy = make_strategy(SETTINGS)
    model, arrays = split_received(strategy, open_vector(tmp_path / "3" / BROADCAST_FILE))
    assert np.array_equal(model, expected.vector)
    assert np.array_equal(arrays[CONTROL], expected.state[CONTROL])
    assert np.array_equal(open_vector(tmp_path / "3" / "model.npy"), expected.vector), "the model alone"
    with pytest.raises(BadInput, match="cannot be divided into 2 arrays"):
        split_received(strategy, model[:-1] if len(model) % 2 == 0 else model)


def test_what_an_engine_yields_has_the_declared_arrays_and_the_new_state() -> None:
    data = _data()
    engine = _trainer(SETTINGS, data)
    start = initial_vector(LOGISTIC, 0)
    zeros = np.zeros_like(start)
    (update,) = engine.train([1], 1, start, downlink={CONTROL: zeros}, state_of=lambda _: {CONTROL: zeros})
    assert set(update.arrays) == {PARAMETERS, CHANGE}
    assert np.array_equal(update.client_state[CONTROL], update.arrays[CHANGE]), "it began with zeros"
    assert "client_state" not in update.model_dump_json()


def test_the_states_of_an_ended_task_are_those_of_the_task_that_resumes_it(tmp_path: Path) -> None:
    ended, resumed = tmp_path / "localparam" / ("a" * 32), tmp_path / "localparam" / ("b" * 32)
    for number in (1, 2):  # round 2 was not committed: it is trained again
        states = StatesOnDisk(ended, LAYOUT, number, 0)
        states.write(3, {"control": np.full(4, number, np.float32)})
        states.adopt([3])
    StatesOnDisk(ended, LAYOUT, 3, 0).write(3, {"control": np.full(4, 9, np.float32)})  # its update is not written
    for _ in range(2):  # a crash before the task was cleared repeats it
        keep_states(tmp_path, ended, 7, "a" * 32, most=2)
    assert take_states(tmp_path, resumed, 7, "a" * 32)
    settle_states(resumed, UpdateIndex(resumed).open())
    assert take_states(tmp_path, resumed, 7, "a" * 32), "a restart finds them where they were moved to"
    assert StatesOnDisk(resumed, LAYOUT, 2, 0).read(3)["control"].tolist() == [1.0] * 4
    assert StatesOnDisk(resumed, LAYOUT, 3, 0).read(3)["control"].tolist() == [2.0] * 4


def test_states_of_a_few_ended_tasks_are_kept_even_of_one_that_trained_nothing(tmp_path: Path) -> None:
    for number in range(1, 5):
        keep_states(tmp_path, tmp_path / "localparam" / str(number), number, f"{number}" * 32, most=2)
    assert sorted(path.name[:11] for path in (tmp_path / ENDED).iterdir()) == ["task-000003", "task-000004"]
    assert take_states(tmp_path, tmp_path / "localparam" / "new", 4, "4" * 32)
    assert not take_states(tmp_path, tmp_path / "localparam" / "other", 2, "2" * 32)
    keep_states(tmp_path, tmp_path / "localparam" / "5", 5, "5" * 32, most=0)
    assert list((tmp_path / ENDED).iterdir()) == []
