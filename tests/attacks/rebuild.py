"""Rebuild a training example of an institution from the models that its node helps to train, as any user can.

The gradient of logistic regression over some examples is a sum of these examples, weighted by the errors of their
predictions. One step over all examples of a client therefore answers with such a sum; two tasks whose clients differ by
one example answer with two sums whose difference is that example.

Usage: rebuild.py FOLDER [open|guarded] [TRIES]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from institution import DATASET, Query, RefusedError, SmallInstitution, Vector

from fedsim.errors import BadInput
from fedsim.learning.cohort import cut_chunks
from fedsim.learning.engine import make_deterministic
from fedsim.learning.partitions import make_partition
from fedsim.settings import TaskSettings

CLASSES, PIXELS = 10, 64
ONE_STEP: dict[str, Any] = {
    "dataset": DATASET,
    "model": "logistic",
    "num_rounds": 1,
    "local_epochs": 1,
    "local_batch_size": 1_000_000,
    "local_learning_rate": 1.0,
    "partition": "dirichlet",
    "save_every": 1,
}


def example_in(gradient: Vector) -> Vector:
    """The weighted mean of examples that a gradient, or a difference of gradients, holds for its strongest class."""
    weights, biases = gradient[: CLASSES * PIXELS].reshape(CLASSES, PIXELS), gradient[CLASSES * PIXELS :]
    strongest = int(np.abs(biases).argmax())
    found: Vector = weights[strongest] / biases[strongest]
    return found


def steps(query: Query) -> list[Vector]:
    """What each round changed, times the number of examples."""
    pairs = zip(query.models, query.models[1:], strict=False)
    return [(before - after) * query.num_examples for before, after in pairs]


def guesses(queries: list[Query]) -> Iterator[Vector]:
    """What each round of each query holds, and each difference of two of them."""
    known = [step for query in queries for step in steps(query)]
    for step in (*known, *(one - other for one, other in combinations(known, 2))):
        if np.abs(step[CLASSES * PIXELS :]).max() > 0:
            yield example_in(step)


def error(guess: Vector, examples: Vector) -> float:
    """The largest error of a pixel, for the example that the guess is nearest to."""
    return float(np.abs(examples - guess).max(axis=1).min())


def nearest(queries: list[Query], examples: Vector) -> float:
    """The smallest error of all guesses."""
    return min((error(guess, examples) for guess in guesses(queries)), default=np.inf)


def differing_pair(institution: SmallInstitution, least: int) -> tuple[TaskSettings, TaskSettings]:
    """Two tasks whose clients, of more than `least` examples, differ by one example; found without the institution.

    The labels are enough for it, and a user may know or guess those; here they are read.
    """
    labels = institution.data.train.labels
    for seed in range(40):
        for clients in (2, 3):
            base = ONE_STEP | {"seed": seed, "num_clients": clients, "fraction_train": 1.0 / clients}
            first = TaskSettings(**base, partition_options={"alpha": 100.0})
            held = _held(first, labels)
            for step in np.geomspace(1e-4, 0.3, 24):
                other = TaskSettings(**base, partition_options={"alpha": float(100.0 * (1 + step))})
                also = _held(other, labels)
                if len(held ^ also) == 1 and min(len(held), len(also)) >= least:
                    return first, other
    raise AssertionError("no pair of settings was found")


def _held(settings: TaskSettings, labels: np.ndarray[Any, np.dtype[np.int64]]) -> set[int]:
    """The examples of the one client that the first round draws."""
    partition = make_partition(settings, labels)
    cohort = settings.plugin("sampler").draw(settings.seed, 1, settings.num_clients, settings.cohort_size)
    (chunk,) = cut_chunks(cohort, [(0, settings.num_clients)], 1)
    return set(partition.indices(chunk.clients[0]).tolist())


def client_of_one_example(institution: SmallInstitution) -> TaskSettings:
    """One task whose only client in the first round has one example: no difference is needed."""
    labels = institution.data.train.labels
    for seed in range(200):
        base = ONE_STEP | {"seed": seed, "num_clients": 300, "fraction_train": 1 / 300}
        settings = TaskSettings(**base, partition_options={"alpha": 2.0})
        with suppress(BadInput):
            if len(_held(settings, labels)) == 1:
                return settings
    raise AssertionError("no settings were found")


def saturating() -> TaskSettings:
    """Steps long enough that few predictions are still wrong: a round changes the model by the sum of few examples."""
    return TaskSettings(
        **ONE_STEP
        | {"num_rounds": 40, "local_batch_size": 100, "local_learning_rate": 90.0, "partition": "iid", "num_clients": 2}
        | {"fraction_train": 0.5}
    )


def any_settings(chance: np.random.Generator) -> list[TaskSettings]:
    """Two tasks with settings as a user may choose them, alike but for some of them."""
    clients = int(chance.integers(1, 30))
    base: dict[str, Any] = ONE_STEP | {
        "partition": str(chance.choice(["dirichlet", "iid", "shards"])),
        "num_clients": clients,
        "fraction_train": float(chance.choice([1.0, 1.0 / clients, 0.5])),
        "local_batch_size": int(chance.choice([1, 10, 20, 100, 1_000_000])),
        "local_learning_rate": float(10 ** chance.uniform(-4, 0)),
        "local_epochs": int(chance.choice([1, 1, 2, 5])),
        "seed": int(chance.integers(100)),
    }
    changed = {
        "partition_options": {"alpha": 1.0},
        "num_clients": clients + 1,
        "seed": base["seed"] + 1,
        "local_epochs": base["local_epochs"] + 1,
        "local_batch_size": 40,
    }
    key = str(chance.choice(list(changed)))
    alpha = {"alpha": float(10 ** chance.uniform(-2, 3))} if base["partition"] == "dirichlet" else {}
    other = base | {"partition_options": alpha} | {key: changed[key]}
    if base["partition"] != "dirichlet":
        other["partition_options"] = {}
    return [TaskSettings(**base, partition_options=alpha), TaskSettings(**other)]


def bar(institution: SmallInstitution) -> float:
    """How near the mean of a block comes to an example, at best."""
    examples = institution.examples
    return min(error(examples[block].mean(axis=0), examples) for block in institution.blocks)


def smallest_error(institution: SmallInstitution, tries: int, seed: int = 0) -> tuple[float, int]:
    """The smallest error of that many tries, and how many of them were not refused."""
    chance, examples, best, answered = np.random.default_rng(seed), institution.examples, np.inf, 0
    for _ in range(tries):
        queries = []
        for settings in any_settings(chance):
            with suppress(RefusedError, BadInput):
                queries.append(institution.answer(settings))
        answered += bool(queries)
        best = min(best, nearest(queries, examples))
    return best, answered


def main() -> None:
    """Attack, and print what came of it."""
    folder, access, *tries = Path(sys.argv[1]), *sys.argv[2:]
    make_deterministic(threads=1)
    institution = SmallInstitution(folder, access, {"min_examples": 500} if access == "open" else {})
    examples = institution.examples
    if access == "open":
        pair = differing_pair(institution, 500)
        print(f"two tasks: error {nearest([institution.answer(one) for one in pair], examples):.1e}")
        return
    print(f"the mean of a block: {bar(institution):.4f}")
    best, answered = smallest_error(institution, int(tries[0]) if tries else 200)
    print(f"error {best:.4f}, of {answered} tries that were answered")
    print(f"long steps: error {nearest([institution.answer(saturating())], examples):.4f}")


if __name__ == "__main__":
    main()
