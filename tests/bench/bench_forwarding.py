"""A global model to 16 nodes that pass it on, each behind 100 Mbit/s, next to a transfer to one node."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

import slow_network
from harness.measure import Options, bench_folder
from harness.results import NotHereError, Row, compare, ratio_at_most

NODES, QUICK_NODES = 16, 4
MEGABYTES, QUICK_MEGABYTES = 32, 6


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    if os.geteuid() != 0 or shutil.which("tc") is None:
        raise NotHereError("hosts in networks of their own need root, and tc: apt-get install iproute2")
    count = QUICK_NODES if options.quick else NODES
    megabytes = QUICK_MEGABYTES if options.quick else MEGABYTES
    with bench_folder() as folder:
        found = slow_network.measure(folder, count, megabytes, options.repeats)
    what = f"{megabytes} MB to {count} nodes at {slow_network.RATE} Mbit/s"
    yield compare(f"{what}, passed on", found.chain, found.one, against="to one node", bar=ratio_at_most(1.7))
    yield Row(f"{what}, directly", found.direct, "s")
