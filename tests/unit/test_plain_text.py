"""Plain text as sequences of characters, plays by speaker, and the model that is made for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plugin_support import INFO, attempt, hello
from pydantic import ValidationError

from fedsim.config import DataSetConfig
from fedsim.data import DataSet, load_dataset
from fedsim.data.load import describe
from fedsim.data.plain_text import ALPHABET
from fedsim.data_schema import DataSchema
from fedsim.errors import BadInput
from fedsim.learning.conform import conform_all
from fedsim.learning.networks import check_training, count_parameters, network_on_meta
from fedsim.learning.objectives.classification import Classification
from fedsim.messages import ModelSpec
from fedsim.settings import TaskSettings
from fedsim.state_machines.plan import Plan
from fedsim.web.catalogue import Catalogue, check_settings
from fedsim.web.errors import Fault

PLAY = "Ann:\nHow now?\nWho goes?\n\nBob:\nIt is I.\n\nWho else?\n\nAnn:\nPass.\n"


def config(path: str, **keys: Any) -> DataSetConfig:
    return DataSetConfig.model_validate({"name": "play", "path": path, "format": "text", "access": "open", **keys})


def load(folder: Path, **keys: Any) -> DataSet:
    return load_dataset(config("play.txt", **keys), folder)


def text_of(symbols: Any) -> str:
    return "".join(("?" + ALPHABET)[int(symbol)] for symbol in symbols)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "play.txt").write_text(PLAY, encoding="utf-8")
    return tmp_path


def test_a_text_becomes_windows_of_what_follows(folder: Path) -> None:
    data = load(folder, length=10)
    assert data.num_classes == 97
    assert data.train.clients is None
    assert data.train.features.dtype == np.uint8
    read = "".join(map(text_of, data.train.features))
    assert read == PLAY[: len(read)]
    assert len(PLAY) - len(read) <= 10
    assert text_of(data.train.labels[0]) == PLAY[1:11]
    assert text_of(data.train.labels[-1]) == PLAY[len(read) - 9 : len(read) + 1]


def test_a_play_names_its_speakers_as_clients(folder: Path) -> None:
    data = load(folder, length=8, speakers=True)
    assert data.train.clients is not None
    said = {who: "".join(map(text_of, data.train.features[data.train.clients == who])) for who in (0, 1)}
    assert said == {0: "How now?\nWho goes?\nPass."[:24], 1: "It is I.\nWho els"}
    assert describe(config("play.txt"), data).natural_clients == (2, 2)


def test_a_folder_has_a_file_of_each_client(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    for name, text in (("b", "abcabcabcabc"), ("a", "xyzxyz"), ("short", "x")):
        (tmp_path / "letters" / f"{name}.txt").write_text(text, encoding="utf-8")
    data = load_dataset(config("letters", length=5), tmp_path)
    assert data.train.clients is not None
    assert data.train.clients.tolist() == [0, 1, 1]
    padded = load_dataset(config("letters", length=5, padding=True), tmp_path)
    assert len(padded.train) == 4
    assert text_of(padded.train.features[-1]) == "bc???"
    assert text_of(padded.train.labels[-1]) == "c????"


def test_each_speaker_is_tested_on_what_comes_last(tmp_path: Path) -> None:
    speech = "abcdefghij"
    (tmp_path / "play.txt").write_text(f"A:\n{speech * 10}\n\nB:\n{speech * 5}\n", encoding="utf-8")
    data = load(tmp_path, length=10, speakers=True, test_share=0.2)
    assert data.test is not None
    assert data.test.clients is not None
    assert data.train.clients is not None
    assert np.bincount(data.train.clients).tolist() == [8, 4]
    assert np.bincount(data.test.clients).tolist() == [2, 1]
    assert text_of(data.test.labels[1])[-1] == "\n"


def test_a_test_set_may_lack_most_speakers(tmp_path: Path) -> None:
    speech = "abcdefghij"
    (tmp_path / "play.txt").write_text(f"A:\n{speech}\n\nB:\n{speech}\n\nC:\n{speech * 5}\n", encoding="utf-8")
    data = load(tmp_path, length=10, speakers=True, test_share=0.2)
    assert data.test is not None
    assert data.test.clients is not None
    assert data.test.clients.tolist() == [2]


def test_the_alphabet_decides_the_symbols_and_must_be_the_same(folder: Path) -> None:
    letters = "".join(sorted(set(PLAY)))
    own = load(folder, length=10, alphabet=letters)
    assert own.num_classes == len(letters) + 1
    usual = load(folder, length=10)
    with pytest.raises(BadInput, match=r"holds text with an alphabet of \d+ characters that lacks"):
        conform_all([usual, usual, own])
    with pytest.raises(ValidationError, match="alphabet: must have each character once"):
        load(folder, alphabet="aa")
    schemas = {
        name: DataSchema(kind="text", alphabet=alphabet, targets="tokens")
        for name, alphabet in (("a", "abc"), ("b", "abc"), ("c", "acb"), ("d", "abx"))
    }
    text = INFO.model_copy(update={"feature_shape": (80,), "num_classes": 4})
    settings = TaskSettings(objective="next_token", model="shakespeare_lstm", num_clients=4, partition="natural")
    infos = {
        name: text.model_copy(update={"digest": name * 64, "data_schema": schema, "natural_clients": (9,)})
        for name, schema in schemas.items()
    }
    made = attempt(
        settings.model_copy(update={"testset_from": "a"}), [hello(n, datasets=(i,)) for n, i in infos.items()]
    )
    assert isinstance(made, Plan)
    assert dict(made.left_out) == {
        "c": "has the characters of its alphabet in another order than the data of a",
        "d": "holds text with an alphabet of 3 characters that has 'x', the data of a text with an alphabet of 3 "
        "characters",
    }


@pytest.mark.parametrize(
    ("content", "keys", "problem"),
    [
        (b"caf\xe9 noir", {}, r"play\.txt: at byte 3: not UTF-8"),
        ("我们先明白了这一点".encode(), {"length": 3}, r"9 of 9 characters are not in the alphabet, such as '一'"),
        (b"too short", {}, "no text has the 81 characters of an example"),
        (b"Once upon a time.\n", {"speakers": True}, r"play\.txt: line 1: a play begins with a speaker"),
        (b"\n\n", {"speakers": True}, "found no speech"),
        (b"a" * 200, {"test_share": 0.1}, "test_share 0.1 of each client's examples leaves none"),
    ],
)
def test_what_is_wrong_with_a_text_is_named(tmp_path: Path, content: bytes, keys: dict[str, Any], problem: str) -> None:
    (tmp_path / "play.txt").write_bytes(content)
    with pytest.raises(BadInput, match=problem):
        load(tmp_path, **keys)


def test_the_model_is_that_of_the_paper() -> None:
    spec = ModelSpec(name="shakespeare_lstm", feature_shape=(80,), num_classes=97)
    assert count_parameters(spec) == 798_720 + 265 * 97
    network = network_on_meta(spec)
    assert network is not None
    assert [tuple(parameter.shape) for parameter in network.parameters()][:2] == [(97, 8), (4 * 256, 8)]


def test_the_model_is_refused_for_other_objectives() -> None:
    with pytest.raises(Fault) as refused:
        check_settings({"model": "shakespeare_lstm"}, Catalogue((), {}))
    reason = (
        "model shakespeare_lstm predicts a class at each place of a sequence, the objective one class of each example: "
        "choose another model or objective"
    )
    assert str(refused.value.problems["model"]) == reason
    spec = ModelSpec(name="shakespeare_lstm", feature_shape=(80,), num_classes=97)
    network = network_on_meta(ModelSpec(name="shakespeare_lstm", feature_shape=(8,), num_classes=3))
    assert network is not None
    with pytest.raises(BadInput, match="must give logits"):
        check_training(network.to_empty(device="cpu"), spec, objective=Classification())
