"""Connections whose other side never identifies itself: they shut no peer out and take little of its speed."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from strangers import BEHAVIOURS, strangers
from transfer_support import HELLO, NODE, hello_body, local_id, meta_of
from uploads import Uploads

from fedsim.wire.sender import Sender

WAYS = [(behaviour, tls) for tls in (False, True) for behaviour in BEHAVIOURS if tls or behaviour != "handshake"]
HERE, ELSEWHERE = "127.0.0.1", "127.0.5.5"


def often(tried: tuple[object, ...], chosen: list[tuple[object, ...]]) -> object:
    """A parameter set that is tried by `make test`, if it is one of the chosen ones; else by `make test-long`."""
    return pytest.param(*tried, marks=() if tried in chosen else pytest.mark.long)


@pytest.mark.parametrize(
    ("behaviour", "tls", "number", "address"),
    [
        often((*way, number, address), [("trickle", False, 560, HERE), ("handshake", True, 560, ELSEWHERE)])
        for way in WAYS
        for number in (560, 2000)
        for address in (HERE, ELSEWHERE)
    ],
)
def test_every_upload_arrives_over_a_connection_of_its_own(
    tmp_path: Path, behaviour: str, tls: bool, number: int, address: str
) -> None:
    with Uploads(tmp_path, 1, 1, tls=tls) as uploads:
        uploads.seconds()
        with strangers(uploads.port, number, behaviour, tls=tls, address=address):
            for round_number in range(1, 9):
                file_id = local_id(0, round_number)
                with Sender(NODE, credentials=uploads.credentials) as sender:
                    outcome = sender.send_and_wait(
                        uploads.peer, file_id, uploads.source, meta=meta_of(file_id), give_up_after=60
                    )
                assert outcome.delivered
        with Sender(NODE, credentials=uploads.credentials) as sender:
            assert sender.send_and_wait(uploads.peer, HELLO, hello_body("node-1"), give_up_after=60).delivered


@pytest.mark.parametrize(("behaviour", "tls"), [often(way, [("churn", True)]) for way in WAYS])
def test_uploads_keep_most_of_their_speed(tmp_path: Path, behaviour: str, tls: bool) -> None:
    with Uploads(tmp_path, 2, 32, tls=tls) as uploads:
        uploads.seconds()
        ratios = []
        for _ in range(5):
            alone = uploads.seconds()
            with strangers(uploads.port, 560, behaviour, tls=tls):
                uploads.seconds()  # until then they connect
                ratios.append(alone / uploads.seconds())
    assert uploads.arrived == uploads.sent == 32
    assert statistics.median(ratios) >= 0.6, ratios
