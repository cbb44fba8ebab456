"""Data that people copy into place byte by byte is noticed when it is whole, not when its name appears."""

from __future__ import annotations

from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

from fedsim.spool.watch import Watch


def test_a_file_written_in_place_wakes_at_its_end_and_when_it_goes(tmp_path: Path) -> None:
    watch = Watch(tmp_path, written=True)
    with DefaultSelector() as selector:
        selector.register(watch, EVENT_READ)
        with (tmp_path / "data.csv").open("w") as file:
            file.write("half")
            file.flush()
            watch.drain()  # its name
            assert not selector.select(0)
        assert selector.select(1)
        watch.drain()
        (tmp_path / "data.csv").unlink()
        assert selector.select(1)
    watch.close()
