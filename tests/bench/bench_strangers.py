"""What uploads lose to strangers: peers that connect and identify themselves slowly or never.

A receiver process of its own, plain and with TLS; a node uploads over one connection, with and without a process of
strangers, in turn. The strangers use at most a fifth of one core; see `strangers.py` for what they do.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.measure import Options, bench_folder
from harness.results import Row, compare, ratio_at_least
from strangers import BEHAVIOURS, strangers
from uploads import Uploads

FILES, MIB = 8, 32
NUMBER, QUICK_NUMBER, LARGE_NUMBER = 560, 40, 2000


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    number = QUICK_NUMBER if options.quick else LARGE_NUMBER if options.large else NUMBER
    files, mebibytes = (2, 1) if options.quick else (FILES, MIB)
    for tls in (False, True):
        for behaviour in BEHAVIOURS[1:2] if options.quick else BEHAVIOURS:
            if behaviour == "handshake" and not tls:
                continue
            with bench_folder() as folder, Uploads(folder, files, mebibytes, tls=tls) as uploads:
                uploads.seconds()
                alone, beside = [], []
                for _ in range(options.repeats):
                    alone.append(uploads.seconds())
                    with strangers(uploads.port, number, behaviour, tls=tls):
                        uploads.seconds()  # until then they connect
                        beside.append(uploads.seconds())
                arrived = f"{uploads.arrived} of {uploads.sent} arrived"
            size = files * mebibytes * 2**20
            yield compare(
                f"uploads next to {number} strangers that {_WORDS[behaviour]}",
                [size / seconds for seconds in beside],
                [size / seconds for seconds in alone],
                against="alone",
                unit="B/s",
                bar=ratio_at_least(0.8),
                note=f"{'TLS' if tls else 'plain'}, {arrived}",
            )


_WORDS = {
    "silent": "send nothing",
    "trickle": "send a byte now and then",
    "handshake": "begin a handshake",
    "churn": "connect again and again",
}
