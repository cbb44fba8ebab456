"""A population of 1,000,000 clients on one node, 1,000 of them a round: set-up, the node's memory, cost of a round."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from harness.lab import processes, run_task, steady, task_settings, tiny_lab
from harness.measure import Options, bench_folder
from harness.memory import MemoryWatch, Usage
from harness.results import Row, at_most, ratio_at_most

MEGABYTE = 1_000_000
POPULATION, QUICK_POPULATION, SMALL_POPULATION = 1_000_000, 20_000, 10_000
COHORT, QUICK_COHORT = 1000, 100
FEATURES, EXAMPLES_EACH = 8, 2
ROUNDS = 5
SETUP_SECONDS = 5.0
MOST_MEMORY = 600 * MEGABYTE


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    population = QUICK_POPULATION if options.quick else POPULATION
    cohort = QUICK_COHORT if options.quick else COHORT
    lengths = {}
    for clients in (SMALL_POPULATION, population):
        node = {"clients": population}
        examples = EXAMPLES_EACH * clients
        with bench_folder() as folder, tiny_lab(folder, 1, shape=(FEATURES,), examples=examples, client=node) as lab:
            share = {"num_clients": clients, "fraction_train": cohort / clients}
            settings = task_settings(1, ROUNDS, model="logistic", **share)
            with MemoryWatch(lambda: processes(lab)) as watch:
                task, rounds = run_task(lab, settings)
        lengths[clients] = statistics.median(steady(rounds))
    note = f"{population:,} clients, {cohort:,} a round"
    began = rounds[0].finished_at - rounds[0].seconds["all"] - task.created_at
    yield Row("from submit to the first round", began, "s", bar=at_most(SETUP_SECONDS, "python"), note=note)
    peak = sum((found for name, found in watch.peaks.items() if name.startswith("node-")), Usage())
    yield Row("the node's memory", peak.pss, "B", bar=at_most(MOST_MEMORY), note=f"PSS, {note}")
    against = f"{SMALL_POPULATION:,} clients"
    bar = ratio_at_most(1.2)
    yield Row("a round", lengths[population], "s", against, lengths[SMALL_POPULATION], bar=bar, note=note)
