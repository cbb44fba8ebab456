"""A global model of 100 MB to 16 receivers at once, next to 16 bare streams; the sender's memory."""

from __future__ import annotations

import os
from collections.abc import Iterable

from harness.bare import BareReceivers, Stream
from harness.measure import Options, bench_folder, interleaved
from harness.memory import MemoryWatch
from harness.receivers import Receivers
from harness.results import Row, at_most, compare, ratio_at_least
from transfer_support import model_file

MEGABYTE = 1_000_000
SIZE, QUICK_SIZE = 100 * MEGABYTE, 8 * MEGABYTE
RECEIVERS, QUICK_RECEIVERS = 16, 3


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    size = QUICK_SIZE if options.quick else SIZE
    count = QUICK_RECEIVERS if options.quick else RECEIVERS
    with bench_folder() as folder:
        source = folder / "m.npy"
        digest = model_file(source, size // 4)
        streams = [Stream(number, source, folder / f"bare-{number}") for number in range(count)]
        with Receivers(folder / "ours", count) as ours, BareReceivers(count) as bare:

            def fedsim() -> float:
                ours.forget()
                return ours.send_to_all(source, digest)

            ways = {
                "ours": fedsim,
                "bare": lambda: bare.seconds(streams, digest=True),
                "bare, synced": lambda: bare.seconds(streams, digest=True, fsync=True),
            }
            found = interleaved(ways, options.repeats)
            ours.forget()
            with MemoryWatch(lambda: {"sender": [os.getpid()]}, interval=0.02) as watch:
                ours.send_to_all(source, digest)
        rates = {way: [size * count / seconds for seconds in found[way]] for way in ways}
        what = f"{size // MEGABYTE} MB to {count} receivers"
        floor = f"{count} bare streams → blake3 → write"
        yield compare(what, rates["ours"], rates["bare"], against=floor, unit="B/s", bar=ratio_at_least(0.8))
        yield compare(what, rates["ours"], rates["bare, synced"], against="the same with fsync", unit="B/s")
        yield Row("the sender's memory grows by", watch.growth("sender"), "B", bar=at_most(16 * MEGABYTE))
