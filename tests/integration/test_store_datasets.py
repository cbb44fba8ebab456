"""The digests of data sets: learnt once, kept over restarts, forgotten by an administrator; on SQLite and MariaDB."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cli_support import Terminal
from web_support import hello

from fedsim.messages import Hello
from fedsim.server.known_data import KnownData
from fedsim.store import open_store
from fedsim.store.records import PinnedDataSet

if TYPE_CHECKING:
    from fedsim.store import Store


def announced(node: str, digest: str) -> Hello:
    """A node with its copy of mnist."""
    found = hello(node)
    for info in found["datasets"]:
        info["digest"] = digest * 64
    return Hello.model_validate(found)


def test_a_digest_is_learnt_once_two_nodes_hold_it_and_stays(store: Store) -> None:
    known = KnownData(store)
    alone = announced("a", "1")
    known.learn(alone, {"a": alone})
    assert known.read() == {}, "one node's data may change"
    same, other = announced("b", "1"), announced("c", "2")
    known.learn(other, {"a": alone, "c": other})
    assert known.read() == {}, "they differ"
    known.learn(same, {"a": alone, "b": same, "c": other})
    assert known.read() == {"mnist": "1" * 64}
    fourth = announced("d", "2")
    known.learn(fourth, {"c": other, "d": fourth})
    assert known.read() == {"mnist": "1" * 64}
    assert KnownData(store).read() == {"mnist": "1" * 64}, "a restart"
    assert not store.datasets.pin(PinnedDataSet("mnist", "3" * 64, 1.0))
    assert store.datasets.forget("mnist")
    assert not store.datasets.forget("mnist")
    assert known.read() == {}
    known.learn(fourth, {"c": other, "d": fourth})
    assert known.read() == {"mnist": "2" * 64}


def test_an_administrator_lists_digests_and_lets_one_be_learnt_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "web.yml"
    config.write_text(f"database: sqlite:///{tmp_path}/fedsim.db\n", encoding="utf-8")
    terminal = Terminal(capsys, monkeypatch, tmp_path)
    assert terminal.run("admin", "migrate", "--config", config).code == 0
    assert "No data set" in terminal.run("admin", "datasets", "--config", config).err
    store = open_store(f"sqlite:///{tmp_path}/fedsim.db")
    store.datasets.pin(PinnedDataSet("mnist", "1" * 64, 1.0))
    store.close()
    assert "1" * 64 in terminal.run("admin", "datasets", "--config", config).out
    assert terminal.run("admin", "datasets", "--forget", "other", "--config", config).code == 66
    forgotten = terminal.run("admin", "datasets", "--forget", "mnist", "--json", "--config", config)
    assert forgotten.document == {"datasets": []}
