"""Behind an uplink of 100 Mbit/s a chain of nodes takes about the time of one transfer."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from presence import missing
from slow_network import measure


def test_behind_a_slow_uplink_the_server_chooses_the_chain_which_takes_about_the_time_of_one(tmp_path: Path) -> None:
    if os.geteuid() != 0 or any(shutil.which(name) is None for name in ("ip", "tc", "nsenter", "unshare")):
        missing("hosts in networks of their own need root, and ip and tc: apt-get install iproute2")
    found = measure(tmp_path, 4, 6)
    assert found.chosen == [0, 4, 4]
    assert found.direct > 3.5 * found.one[0], "the uplink is the bottleneck"
    assert found.sent[0] < 1.1
    assert found.chain[0] < 0.6 * found.direct
