"""Attacks against their papers' formulas, and where a task may not study one."""

from __future__ import annotations

from math import erf, sqrt
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from plugin_support import INFO, hello, planned
from test_institution_rules import config
from test_task_machine_more import assignment
from test_web_forms import KNOWN

from fedsim.data import DataSet, Examples
from fedsim.errors import BadInput
from fedsim.learning.attacks import AttackContext, attacking_clients, make_attack
from fedsim.learning.attacks.alie import z_max
from fedsim.learning.attacks.backdoor import Backdoor
from fedsim.learning.engines.batched import BatchedEngine
from fedsim.learning.engines.sequential import SequentialEngine
from fedsim.learning.objectives import Objective
from fedsim.learning.simulate import simulate
from fedsim.messages import GuardInfo
from fedsim.settings import TaskSettings
from fedsim.state_machines.guarded import unwilling
from fedsim.state_machines.policy import refusal
from fedsim.web.catalogue import Catalogue, DataSetSummary, check_settings
from fedsim.web.errors import Fault

pytestmark = pytest.mark.usefixtures("deterministic_torch")
Vectors = NDArray[np.float64]
SIZE = 300
CONTEXT = AttackContext(seed=4, round=2, clients=(3, 5, 8, 9), n=50, m=24)


@pytest.fixture(scope="module")
def honest() -> Vectors:
    return np.random.default_rng(0).normal(0.3, 1.0, size=(4, SIZE))


def crafted(name: str, honest: Vectors, **options: Any) -> Vectors:
    attack = make_attack(TaskSettings(attack=name, attack_options=options))
    assert attack is not None
    return np.broadcast_to(attack.craft(honest, CONTEXT), honest.shape)


# ---------------------------------------------------------------- the papers' formulas


def test_sign_flip_reverses_each_update(honest: Vectors) -> None:
    for vector, sent in zip(honest, crafted("sign_flip", honest, s=3.0), strict=True):
        assert abs(sent + 3 * vector).max() < 1e-12


def test_gaussian_sends_noise_of_the_deviation_that_is_asked_for() -> None:
    sent = crafted("gaussian", np.zeros((4, 50_000)), sigma=7.0)
    assert np.allclose(sent.std(axis=1), 7.0, rtol=0.02)
    assert np.allclose(sent.mean(axis=1), 0.0, atol=0.15)
    assert abs(np.corrcoef(sent) - np.eye(4)).max() < 0.03, "the noise of two attackers is independent"


def test_alie_is_algorithm_3(honest: Vectors) -> None:
    n, m = CONTEXT.n, CONTEXT.m
    s = n // 2 + 1 - m
    z = next(step / 1e5 for step in range(10**6) if 0.5 * (1 + erf(step / 1e5 / sqrt(2))) >= (n - m - s) / (n - m))
    mu = sum(honest) / 4
    sigma = np.sqrt(sum((vector - mu) ** 2 for vector in honest) / 4)
    assert z_max(n, m) == pytest.approx(z, abs=2e-5)
    assert np.allclose(crafted("alie", honest), mu + z * sigma, atol=1e-4)
    assert abs(crafted("alie", honest, z=1.5) - (mu + 1.5 * sigma)).max() < 1e-12
    assert z_max(10, 1) == z_max(2, 2) == 0.0, "the attackers need more than half of the others"


def test_inner_product_sends_a_negative_multiple_of_the_mean(honest: Vectors) -> None:
    sent = crafted("inner_product", honest, epsilon=0.5)
    assert abs(sent + 0.5 * sum(honest) / 4).max() < 1e-12
    assert float(sent[0] @ honest.mean(axis=0)) < 0


@pytest.mark.parametrize("perturbation", ["unit", "std", "sign"])
def test_min_max_is_as_far_away_as_equation_8_allows(honest: Vectors, perturbation: str) -> None:
    mu = honest.mean(axis=0)
    p = {"unit": -mu / np.linalg.norm(mu), "std": -honest.std(axis=0), "sign": -np.sign(mu)}[perturbation]
    most = max(float(np.linalg.norm(one - other)) for one in honest for other in honest)

    def distance(gamma: float) -> float:
        return max(float(np.linalg.norm(mu + gamma * p - one)) for one in honest)

    low, high = 0.0, 1000.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if distance(middle) <= most else (low, middle)
    sent = crafted("min_max", honest, perturbation=perturbation, gamma_init=50.0, tau=1e-9)
    assert low > 0
    assert np.allclose(sent, mu + low * p, rtol=0, atol=1e-6 * low * abs(p).max())
    assert max(float(np.linalg.norm(sent[0] - one)) for one in honest) <= most * (1 + 1e-12)


def test_label_flip_mirrors_the_classes() -> None:
    attack = make_attack(TaskSettings(attack="label_flip"))
    assert attack is not None
    features = np.zeros((10, 4), np.float32)
    _, labels = attack.poison(features, np.arange(10), 10, np.random.default_rng(0))
    assert labels.tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("shape", [(6, 6), (3, 6, 6), (36,)])
def test_a_backdoor_marks_a_share_of_the_examples(shape: tuple[int, ...]) -> None:
    attack = Backdoor(Backdoor.Options(target=2, fraction=0.25, size=3))
    features, labels = attack.poison(
        np.zeros((40, *shape), np.float32), np.ones(40, np.int64), 4, np.random.default_rng(0)
    )
    marked = features.reshape(40, -1).any(axis=1)
    assert marked.sum() == 10
    assert (labels == np.where(marked, 2, 1)).all()
    wanted = np.zeros(shape, np.float32)
    wanted[..., -3:] = 1
    if len(shape) > 1:
        wanted[..., :-3, :] = 0
    assert (features[marked] == wanted).all()


# ---------------------------------------------------------------- in a task


def data() -> DataSet:
    rng = np.random.default_rng(6)
    labels = np.arange(240, dtype=np.int64) % 3
    features = rng.normal(size=(240, 5)).astype(np.float32) + labels[:, None].astype(np.float32)
    return DataSet(Examples(features, labels), Examples(features[:60], labels[:60]), 3)


def task(**changes: Any) -> TaskSettings:
    chosen: dict[str, Any] = {"model": "logistic", "partition": "iid", "num_clients": 12, "fraction_train": 1.0}
    chosen |= {"local_epochs": 1, "local_learning_rate": 0.2, "num_rounds": 3, "evaluate_every": 1, **changes}
    return TaskSettings(**chosen)


ALL = ("sign_flip", "label_flip", "gaussian", "alie", "inner_product", "min_max", "backdoor")


def test_the_seed_or_the_options_say_who_attacks() -> None:
    settings = task(attack="sign_flip", attack_options={"attackers": 3})
    drawn = attacking_clients(make_attack(settings), settings)
    assert len(drawn) == 3
    assert drawn <= set(range(12))
    others = [task(attack="sign_flip", attack_options={"attackers": 3}, seed=seed) for seed in range(1, 5)]
    assert any(attacking_clients(make_attack(other), other) != drawn for other in others)
    named = task(attack="sign_flip", attack_options={"clients": "7, 2"})
    assert attacking_clients(make_attack(named), named) == {2, 7}
    assert attacking_clients(None, named) == frozenset()


@pytest.mark.parametrize("strategy", ["fedavg", "median"])
@pytest.mark.parametrize("name", ALL)
def test_an_attack_changes_the_model_and_is_reproducible(name: str, strategy: str) -> None:
    attacked = task(attack=name, attack_options={"clients": [1, 2, 3]}, strategy=strategy)
    one = simulate(attacked, data(), chunk_clients=4)
    assert one.digest == simulate(attacked, data(), chunk_clients=4, workers=2).digest
    assert one.digest != simulate(task(strategy=strategy), data(), chunk_clients=4).digest
    half = simulate(attacked.model_copy(update={"num_rounds": 1}), data(), chunk_clients=4)
    assert one.digest == simulate(attacked, data(), chunk_clients=4, resume=half).digest


@pytest.mark.parametrize("name", ALL)
def test_the_batched_engine_is_attacked_alike(name: str) -> None:
    attacked = task(attack=name, attack_options={"clients": [1, 2, 3]}, model="2nn", num_rounds=1)
    one, two = (
        simulate(attacked, data(), chunk_clients=4, engine=engine).vector
        for engine in (SequentialEngine, BatchedEngine)
    )
    assert np.allclose(one, two, rtol=0, atol=1e-5)


def test_only_attackers_are_changed() -> None:
    """The mean of two honest clients and of an attacker, from tasks in which each is alone."""
    settings = task(num_clients=3, num_rounds=1, attack="sign_flip", attack_options={"clients": [1], "s": 5.0})
    sent = simulate(settings, data(), chunk_clients=3).vector
    plain = {
        client: simulate(task(num_clients=3, num_rounds=1), data(), chunk_clients=1, missing={1: {0, 1, 2} - {client}})
        for client in range(3)
    }
    start = simulate(task(num_clients=3, num_rounds=1, local_learning_rate=1e-30), data()).vector
    wanted = (plain[0].vector + plain[2].vector + start - 5.0 * (plain[1].vector - start)) / 3
    assert np.allclose(sent, wanted, atol=1e-6)


def test_attackers_of_other_chunks_are_not_known() -> None:
    settings = task(attack="alie", attack_options={"clients": [0, 1], "z": 1.0})
    together, apart = (
        simulate(settings, data(), chunk_clients=clients, engine=SequentialEngine).digest for clients in (12, 1)
    )
    honest = simulate(task(), data(), chunk_clients=1, engine=SequentialEngine).digest
    assert together != apart
    assert apart == honest, "of one update the mean is the update, and there is no deviation"


def test_a_stronger_attack_is_worse_for_the_mean_than_for_the_median() -> None:
    options = {"attackers": 2, "s": 30.0}
    accuracies = {
        strategy: simulate(
            task(attack="sign_flip", attack_options=options, strategy=strategy, num_rounds=6), data(), chunk_clients=12
        )
        .rounds[-1]
        .metrics["accuracy"]
        for strategy in ("fedavg", "median")
    }
    assert (accuracies["median"] or 0) > (accuracies["fedavg"] or 0) + 0.2


def test_a_backdoor_answers_its_trigger() -> None:
    options = {"attackers": 4, "target": 0, "size": 1, "value": 6.0, "gamma": 3.0, "fraction": 0.5}
    attack = Backdoor(Backdoor.Options.model_validate(options))

    def answers(settings: TaskSettings) -> float:
        found = simulate(settings, data(), chunk_clients=12).vector
        weights, biases = found[:15].reshape(3, 5), found[15:]
        stamped = attack.stamp(data().train.take(np.flatnonzero(data().train.labels != 0)))
        return float(((stamped @ weights.T + biases).argmax(axis=1) == 0).mean())

    poisoned = answers(task(attack="backdoor", attack_options=options, num_rounds=10))
    assert poisoned > 0.9
    assert answers(task(num_rounds=10)) < 0.3


# ---------------------------------------------------------------- where it is refused


@pytest.mark.parametrize(
    ("chosen", "field", "sentence"),
    [
        ({"attack": "alie"}, "attack", "needs at least 2 attackers"),
        ({"attack": "sign_flip", "strategy": "scaffold"}, "attack", "the clients of scaffold send parameters, "),
        ({"attack": "sign_flip", "attack_options": {"attackers": 101}}, "attack", "101 of 100 clients are to attack"),
        ({"attack": "sign_flip", "attack_options": {"clients": [100]}}, "attack", "the clients are 0 to 99"),
        ({"attack": "sign"}, "attack", "unknown attack 'sign'"),
        ({"attack_options": {"s": 1}}, "attack_options.s", "choose attack first"),
    ],
)
def test_what_cannot_work_is_refused_at_submission(chosen: dict[str, Any], field: str, sentence: str) -> None:
    with pytest.raises(Fault) as refused:
        check_settings({"dataset": "mnist", **chosen}, KNOWN)
    assert sentence in str(refused.value.problems[field])
    if field == "attack" and chosen["attack"] != "sign":
        with pytest.raises(BadInput, match=sentence):
            simulate(TaskSettings(num_clients=chosen.pop("num_clients", 100), model="logistic", **chosen), data())


class Squares(Objective):
    """Stands for an objective that has no classes; nothing is computed with it."""


def test_an_attack_on_labels_needs_classes() -> None:
    with pytest.raises(BadInput, match="changes labels of classes, and the objective regression has other targets"):
        simulate(task(attack="label_flip").model_copy(update={"objective": "regression"}), data(), objective=Squares())


def test_an_attack_never_uses_guarded_data() -> None:
    guarded = DataSetSummary("mnist", ("a",), True, 600, 100, (28, 28), 10, 1, guarded=True, open=False)
    with pytest.raises(Fault) as refused:
        check_settings({"attack": "sign_flip"}, Catalogue(KNOWN.nodes, {"mnist": guarded}))
    assert "no attack may use guarded data" in str(refused.value.problems["attack"])
    info = INFO.model_copy(update={"guard": GuardInfo(secret_digest="c" * 64, block_size=20, num_blocks=30)})
    assert "no attack may use guarded data" in str(unwilling(TaskSettings(attack="sign_flip"), hello("a"), info))
    rules = config(attacks=None)
    data_sets = [rules.datasets[0].model_copy(update={"access": "guarded"})]
    asked = assignment(settings=TaskSettings(attack="sign_flip"), guard="d" * 64)
    reason = refusal(asked, rules.model_copy(update={"datasets": data_sets}), processors=2)
    assert reason == "the data set mnist is guarded here, and no attack may use it"


def test_a_node_takes_part_only_where_its_owner_allows_the_attack() -> None:
    asked = assignment(settings=TaskSettings(attack="sign_flip"))
    reason = "this institution does not allow the attack sign_flip (institution.attacks)"
    assert refusal(asked, config(), processors=2) == reason
    assert refusal(asked, config(attacks=["alie"]), processors=2) == reason
    assert refusal(asked, config(attacks=["sign_flip"]), processors=2) is None
    settings = task(attack="sign_flip", num_nodes=1)
    silent = hello("b")
    plan = planned(
        hello("a"), silent.model_copy(update={"plugins": {**silent.plugins, "attacks": ()}}), settings=settings
    )
    assert plan.nodes == ("a",)
    assert dict(plan.left_out)["b"] == ("does not allow the attack sign_flip (institution.attacks in its client.yml)")
    attackers = sorted(attacking_clients(make_attack(settings), settings))
    assert f"the clients {attackers[0]} attack, do not use its model" in plan.notes[-1]
