"""What comparisons of rounds share: fedsim's rounds without training, and the rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

from harness.lab import FEATURES, IMAGE, median_round, sized_mlp, task_settings, tiny_lab
from harness.measure import Options, bench_folder, interleaved
from harness.results import Row, compare, ratio_at_least

MEGABYTE = 1_000_000
SMALL_PARAMETERS = 199_210
ROUNDS = 6
NODES = 4

Rival = Callable[[int, int, int], list[float]]
"""Takes parameters, nodes and rounds, and returns the seconds of each round."""


def rows(name: str, rival: Rival, bars: dict[int, float], options: Options) -> Iterator[Row]:
    """Compare the rounds of each size (bytes of the model, 0 for 0.8 MB), whose bars are in `bars`.

    A rival's platform is started for each measurement, as a lab of fedsim is; only rounds are counted, not the first
    ones.
    """
    for size, bar in bars.items():
        if (options.quick and size) or (size >= 1000 * MEGABYTE and not options.large):
            continue
        yield of_size(name, rival, size, bar, options)


def of_size(name: str, rival: Rival, size: int, bar: float, options: Options) -> Row:
    """The row of one size."""
    nodes = 2 if options.quick else NODES
    model, exact = sized_mlp(size) if size else ({"model": "2nn"}, SMALL_PARAMETERS * 4)
    settings = task_settings(nodes, ROUNDS, **model)
    with bench_folder() as folder, tiny_lab(folder, nodes, shape=(FEATURES,) if size else IMAGE) as lab:
        ways = {
            "ours": lambda: median_round(lab, settings),
            "rival": lambda: statistics.median(rival(exact // 4, nodes, ROUNDS)[1:]),
        }
        found = interleaved(ways, options.repeats, warm_up=0)
    speeds = {way: [1 / seconds for seconds in values] for way, values in found.items()}
    what = f"rounds without training a second, {exact / MEGABYTE:.3g} MB, {nodes} nodes"
    return compare(what, speeds["ours"], speeds["rival"], against=name, unit="", bar=ratio_at_least(bar))
