"""A large file to a receiver, plain and with TLS, next to bare sockets; offered again, and resumed.

The floor is a bare sendfile → recv_into → blake3 → write between two processes, over loopback, of the same file, in
turn with fedsim. It does not sync the file, which fedsim does; the floor that does is printed as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path

from harness.bare import BareReceivers, Stream
from harness.measure import Options, bench_folder, interleaved
from harness.memory import MemoryWatch
from harness.receivers import Receivers
from harness.results import Row, at_most, compare, ratio_at_least, ratio_at_most
from transfer_support import Proxy, model_file

from fedsim.wire import Peer

MIB = 1 << 20
SIZE, QUICK_SIZE = 1024 * MIB, 64 * MIB
SMALL_FILES = 300
CUT_AT = 0.6


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    size = QUICK_SIZE if options.quick else SIZE
    with bench_folder() as folder:
        source = folder / "m.npy"
        digest = model_file(source, size // 4)
        for tls in (False, True):
            yield from whole_file(folder, source, digest, options, tls=tls)
        yield from again_and_resumed(folder, source, digest, options)


def whole_file(folder: Path, source: Path, digest: str, options: Options, *, tls: bool) -> Iterator[Row]:
    """The file as a whole, in turn with the floors; on the plain connection also small files."""
    size, name = source.stat().st_size, "TLS" if tls else "plain"
    stream = Stream(0, source, folder / "bare")
    with Receivers(folder / name, tls=tls) as ours, BareReceivers(tls=ours.tls) as bare:

        def fedsim() -> float:
            ours.forget()
            return ours.send(source, digest).seconds

        ways = {
            "ours": fedsim,
            "bare": lambda: bare.seconds([stream], digest=True),
            "bare, synced": lambda: bare.seconds([stream], digest=True, fsync=True),
        }
        with MemoryWatch(lambda: {"receiver": [ours.processes[0].pid]}) as watch:
            found = interleaved(ways, options.repeats)
        rates = {way: [size / seconds for seconds in found[way]] for way in ways}
        what, note = f"receiver, {size // MIB} MiB, {name}", "verified, synced, in place"
        floor = "bare socket → blake3 → write" if not tls else "the same over a bare TLS socket"
        bar = ratio_at_least(0.85)
        yield compare(what, rates["ours"], rates["bare"], against=floor, unit="B/s", bar=bar, note=note)
        yield compare(what, rates["ours"], rates["bare, synced"], against="the same with fsync", unit="B/s")
        yield Row(f"receiver's memory grows by, {name}", watch.growth("receiver"), "B")
        if not tls:
            seconds = sorted(ours.small(0, number) for number in range(1, (20 if options.quick else SMALL_FILES) + 1))
            yield Row("a 43-byte file, durable, median", seconds[len(seconds) // 2], "s")
            yield Row("a 43-byte file, durable, 95th percentile", seconds[int(len(seconds) * 0.95)], "s")


def again_and_resumed(folder: Path, source: Path, digest: str, options: Options) -> Iterator[Row]:
    """A file that is there already, and one whose connection is cut at 60 %."""
    size = source.stat().st_size
    with Receivers(folder / "again") as ours:
        ours.send(source, digest)
        again = interleaved({"ours": lambda: ours.send(source, digest).seconds}, options.repeats, warm_up=0)["ours"]
        yield Row("the same file offered again", sorted(again)[len(again) // 2], "s", bar=at_most(0.050, "python"))
        ours.forget()
        cut = int(size * CUT_AT)
        with Proxy(ours.ports[0], iter((cut, *repeat(None, 100)))) as proxy:
            ours.send(source, digest, peer=Peer("node-1", "127.0.0.1", proxy.port))
            rest = sum(proxy.carried[1:])
        yield Row("resumed after a cut at 60 %: bytes sent", rest, "B", "the whole file", size, bar=ratio_at_most(0.41))
