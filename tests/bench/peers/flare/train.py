"""A client that sends back what it receives, and notes when: `train.py FOLDER`; runs in NVIDIA FLARE's environment."""

import sys
import time
from pathlib import Path

import nvflare.client as flare


def main() -> None:
    """Answer each round."""
    flare.init()
    marks = Path(sys.argv[1]) / flare.get_site_name()
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        with marks.open("a", encoding="utf-8") as file:
            file.write(f"{time.time()}\n")
        flare.send(flare.FLModel(params=received.params, meta={"NUM_STEPS_CURRENT_ROUND": 1}))


if __name__ == "__main__":
    main()
