"""What uploads lose to strangers: `python tests/bench/bench_strangers.py [connections] [pairs]`.

A receiver process of its own, plain and with TLS; a node uploads over one connection, with and without a process of
strangers, in turn. The strangers use at most a fifth of one core; see `strangers.py` for what they do.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from rich.console import Console
from rich.table import Table
from strangers import BEHAVIOURS, strangers
from uploads import Uploads

FILES, MIB = 8, 32


def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 560
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    chosen = sys.argv[3:] or BEHAVIOURS
    table = Table(title=f"{FILES} uploads of {MIB} MiB, {number} strangers, {pairs} pairs in turn")
    for column in ("strangers", "connection", "alone s", "with them s", "speed, median", "each", "arrived"):
        table.add_column(column)
    for tls in (False, True):
        for behaviour in chosen:
            if behaviour == "handshake" and not tls:
                continue
            with tempfile.TemporaryDirectory() as folder, Uploads(Path(folder), FILES, MIB, tls=tls) as uploads:
                uploads.seconds()
                ratios, alone, beside = [], [], []
                for _ in range(pairs):
                    alone.append(uploads.seconds())
                    with strangers(uploads.port, number, behaviour, tls=tls):
                        uploads.seconds()  # until then they connect
                        beside.append(uploads.seconds())
                    ratios.append(alone[-1] / beside[-1])
            table.add_row(
                behaviour,
                "TLS" if tls else "plain",
                f"{statistics.median(alone):.2f}",
                f"{statistics.median(beside):.2f}",
                f"{statistics.median(ratios):.2f}",
                " ".join(f"{ratio:.2f}" for ratio in ratios),
                f"{uploads.arrived} of {uploads.sent}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
