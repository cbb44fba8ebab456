"""Aggregation of 16 updates of 100 MB in mapped files: the weighted mean, the median, the trimmed mean, and memory.

The floor of the mean is reading the same mapped files with a thread for each core. That of the others is `numpy.median`
of the stacked updates, of a part of the parameters, as the time of both grows in proportion to them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from harness.measure import Options, bench_folder, interleaved, timed
from harness.memory import MemoryWatch
from harness.results import Row, at_most, compare, ratio_at_least
from transfer_support import model_file

from fedsim import plugins
from fedsim.learning.aggregate import aggregate, initial_state
from fedsim.learning.examples import FloatArray
from fedsim.learning.strategies import Strategy
from fedsim.spool.npy import open_vector

MEGABYTE = 1_000_000
SIZE, QUICK_SIZE = 100 * MEGABYTE, 2 * MEGABYTE
FILES, MORE_FILES, FEW_FILES = 16, 64, 4
STACKED_SHARE = 8
"""The median is measured on this part of the parameters."""
MOST_MEMORY = 64 * MEGABYTE
RULES = {"median": "coordinate-wise median", "trimmed_mean": "trimmed mean"}


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    size = QUICK_SIZE if options.quick else SIZE
    with bench_folder() as folder:
        paths = [folder / f"update-{number}.npy" for number in range(FILES)]
        for number, path in enumerate(paths):
            model_file(path, size // 4, seed=number)
        updates = [open_vector(path) for path in paths]
        base = open_vector(paths[0])
        out = np.lib.format.open_memmap(folder / "out.npy", mode="w+", dtype=np.float32, shape=base.shape)
        yield from mean(updates, base, out, options)
        for name, title in RULES.items():
            if name in {found.name for found in plugins.describe(plugins.STRATEGIES)}:
                part = len(base) // STACKED_SHARE
                yield from side_by_side(name, title, [update[:part] for update in updates], out[:part], options)


def combine(name: str, updates: list[FloatArray], base: FloatArray, out: FloatArray) -> Callable[[], bool]:
    """One aggregation by an installed strategy."""
    rule: Strategy = plugins.make(plugins.STRATEGIES, name, {})
    state = initial_state(rule, 0)
    return lambda: aggregate(rule, base, updates, [1.0] * len(updates), state, out, state)


def growth(work: Callable[[], object]) -> int:
    """By how many bytes the anonymous memory of this process grows meanwhile."""
    with MemoryWatch(lambda: {"this": [os.getpid()]}, interval=0.01) as watch:
        work()
    return watch.growth("this")


def mean(updates: list[FloatArray], base: FloatArray, out: FloatArray, options: Options) -> Iterator[Row]:
    """The weighted mean against reading."""
    work = combine("fedavg", updates, base, out)
    with ThreadPoolExecutor() as pool:
        ways = {"ours": lambda: timed(work), "read": lambda: timed(lambda: read(updates, pool))}
        found = interleaved(ways, options.repeats)
    size = sum(update.nbytes for update in updates)
    rates = {way: [size / seconds for seconds in found[way]] for way in ways}
    what = f"weighted mean of {len(updates)} × {base.nbytes // MEGABYTE} MB"
    floor = f"reading the mapped files, {cores()} threads"
    yield compare(what, rates["ours"], rates["read"], against=floor, unit="B/s", bar=ratio_at_least(0.7))
    for count in (FEW_FILES, FILES, MORE_FILES):
        some = [updates[number % len(updates)] for number in range(count)]
        memory = growth(combine("fedavg", some, base, out))
        yield Row(f"memory of the mean of {count} files", memory, "B", bar=at_most(MOST_MEMORY), note="anonymous")


def read(updates: list[FloatArray], pool: ThreadPoolExecutor) -> None:
    """Read every byte once, each thread a part of every file."""

    def part(number: int) -> int:
        found = 0
        for update in updates:
            whole = update[: len(update) // 2 * 2].view(np.uint64)
            share = -(-len(whole) // cores())
            found |= int(np.bitwise_or.reduce(whole[number * share : (number + 1) * share], initial=0))
        return found

    list(pool.map(part, range(cores())))


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def side_by_side(name: str, title: str, updates: list[FloatArray], out: FloatArray, options: Options) -> Iterator[Row]:
    """A rule that needs all updates of a parameter at once, against numpy's median."""
    work = combine(name, updates, updates[0], out)
    ways = {"ours": lambda: timed(work), "numpy": lambda: timed(lambda: np.median(np.stack(updates), axis=0))}
    found = interleaved(ways, options.repeats)
    speeds = {way: [1 / seconds for seconds in found[way]] for way in ways}
    what = f"{title} of {len(updates)} × {updates[0].nbytes / MEGABYTE:.3g} MB"
    bar, against = ratio_at_least(4), "numpy.median of the stack"
    yield compare(f"{what}, a second", speeds["ours"], speeds["numpy"], against=against, unit="", bar=bar)
    yield Row(f"memory of the {title}", growth(work), "B", bar=at_most(MOST_MEMORY), note="anonymous")
