"""CSV tables: labels, scaling, missing values, and the first wrong line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.config.models import DataSetConfig
from fedsim.data import DataSet, load_dataset, load_features
from fedsim.errors import BadInput

TABLE = "id,y,a,b\n7,1,1.0,10\n8,0,3.0,20\n9,1,5.0,60\n"


def _config(**chosen: Any) -> DataSetConfig:
    given = {"name": "bank", "path": Path("bank.csv"), "label_column": "y", "id_column": "id"}
    return DataSetConfig(**(given | chosen))


def _load(folder: Path, text: str | bytes, test: str | None = None, **chosen: Any) -> DataSet:
    (folder / "bank.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    if test is not None:
        (folder / "test.csv").write_text(test, encoding="utf-8")
        chosen["test_path"] = Path("test.csv")
    return load_dataset(_config(**chosen), folder)


def test_a_table_becomes_features_without_id_and_label(tmp_path: Path) -> None:
    dataset = _load(tmp_path, TABLE)
    assert dataset.train.features.dtype == np.float32
    assert dataset.train.take(slice(None)).tolist() == [[1, 10], [3, 20], [5, 60]]
    assert dataset.train.labels.tolist() == [1, 0, 1]
    assert (dataset.num_classes, dataset.feature_shape, dataset.test) == (2, (2,), None)


@pytest.mark.parametrize(
    ("chosen", "train", "test"),
    [
        ({"scale": "minmax"}, [[0, 0], [0.5, 0.2], [1, 1]], [[2, -0.2]]),
        ({"scale_values": {"b": (10, 100)}}, [[1, 0], [3, 0.1], [5, 0.5]], [[9, -0.1]]),
        (
            {"scale": "standard"},
            [[-1.2247, -0.9258], [0, -0.4629], [1.2247, 1.3887]],
            [[3.6742, -1.3887]],
        ),
    ],
)
def test_scaling_is_found_on_the_training_file_and_used_on_the_test_file(
    tmp_path: Path, chosen: dict[str, Any], train: list[list[float]], test: list[list[float]]
) -> None:
    dataset = _load(tmp_path, TABLE, "b,id,y,a\n0,1,0,9\n", **chosen)
    assert dataset.test is not None
    assert np.allclose(dataset.train.features, train, atol=1e-4)
    assert np.allclose(dataset.test.features, test, atol=1e-4)


def test_a_column_that_never_changes_becomes_zero(tmp_path: Path) -> None:
    dataset = _load(tmp_path, "id,y,a,b\n1,0,5,1\n2,1,5,3\n", scale="standard")
    assert dataset.train.features.tolist() == [[0, -1], [0, 1]]


def test_a_share_for_testing_does_not_count_when_scaling_is_found(tmp_path: Path) -> None:
    lines = "".join(f"{number},{number % 2},{number}\n" for number in range(40))
    dataset = _load(tmp_path, "id,y,a\n" + lines, scale="minmax", test_share=0.5)
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (20, 20)
    assert (dataset.train.features.min(), dataset.train.features.max()) == (0, 1)
    assert dataset.test.features.max() > 1 or dataset.test.features.min() < 0


MISSING = "id,y,a,b\n1,1,,10\n2,0,2,NA\n3,1,4,20\n4,?,6,30\n"


def test_lines_with_missing_values_can_be_dropped(tmp_path: Path) -> None:
    dataset = _load(tmp_path, MISSING, missing="drop")
    assert dataset.train.features.tolist() == [[4, 20]]


def test_missing_values_can_be_filled_with_the_training_files_mean(tmp_path: Path) -> None:
    dataset = _load(tmp_path, MISSING.replace("?", "0"), "id,y,a,b\n9,0,,\n", missing="mean")
    assert dataset.test is not None
    assert dataset.train.features.tolist() == [[4, 10], [2, 20], [4, 20], [6, 30]]
    assert dataset.test.features.tolist() == [[4, 20]]


def test_labels_can_be_words(tmp_path: Path) -> None:
    dataset = _load(tmp_path, "id,y,a\n1,no,1\n2,yes,2\n", labels={"no": 0, "yes": 2})
    assert dataset.train.labels.tolist() == [0, 2]
    assert dataset.num_classes == 3


def test_quotes_marks_spaces_and_empty_lines_are_taken(tmp_path: Path) -> None:
    text = '\ufeffid, y ,"a, b"\r\n1,1.0," 2 "\r\n\r\n2,0,-3e1\r\n'
    dataset = _load(tmp_path, text)
    assert dataset.train.features.tolist() == [[2], [-30]]
    assert dataset.train.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "chosen", "message"),
    [
        ("", {}, "line 1: the header is empty"),
        ("id,y,a,a\n", {}, "line 1: the header contains 'a' twice"),
        (TABLE, {"label_column": None}, "set label_column to one of .*id, y, a, b"),
        (TABLE, {"label_column": "z"}, "line 1: no label_column 'z'; columns are id, y, a, b"),
        (TABLE, {"id_column": "z"}, "line 1: no id_column 'z'"),
        ("id,y\n1,1\n", {}, "line 1: no column is a feature"),
        ("id,y,a\n", {}, "it contains no examples"),
        ("id,y,a\n1,1,2\n2,0\n3,x,x\n", {}, "line 3: 2 values, but 3 columns in the header"),
        ("id,y,a\n1,1,2\n\n2,0,zwei\n", {}, "line 4: column a: 'zwei' is not a finite number"),
        ("id,y,a\n1,1,inf\n", {}, "line 2: column a: 'inf' is not a finite number"),
        ("id,y,a\n1,1,1e39\n", {}, "line 2: column a: '1e39'"),
        ("id,y,a\n1,1,\n", {}, "line 2: column a has no value; fill it, or set `missing`"),
        ("id,y,a\n1,,1\n", {}, "line 2: the label is missing"),
        ("id,y,a\n1,yes,1\n", {}, "line 2: the label 'yes' is not a class number"),
        ("id,y,a\n1,-1,1\n", {}, "line 2: the label '-1'"),
        ("id,y,a\n1,0.5,1\n", {}, "line 2: the label '0.5'"),
        ("id,y,a\n1,1e300,1\n", {}, "line 2: the label '1e300'"),
        ("id,y,a\n1,may,1\n", {"labels": {"no": 0, "yes": 1}}, "line 2: `labels` has no class for .* only for no, yes"),
        ("id,y,a\n1,no,1\n", {"labels": {"no": -1, "yes": 1}}, "`labels` gives 'no' the class -1"),
        ("id,y,a\n1,no,1\n", {"labels": {"no": 10**30}}, "gives 'no' the class 10*; classes are 0 to 99999"),
        ('id,y,a\n1,1,"2\n', {}, "line 2: not valid CSV"),
        (b"id,y,a\n1,1,\xff\n", {}, "not UTF-8 text"),
        ("id,y,a\n1,1,\n2,1,\n", {"missing": "mean"}, "column a has no values"),
        (TABLE, {"scale": "minmax", "scale_values": {"a": (0, 1)}}, "scale_values or scale: minmax, not both"),
        (TABLE, {"scale_values": {"z": (0, 1)}}, "scale_values names 'z'; columns are a, b"),
        (TABLE, {"scale_values": {"a": (0, 0)}}, "divide a by 0"),
        (TABLE, {"scale_values": {"a": (0, 1e-300)}}, "not finite"),
    ],
)
def test_the_first_wrong_line_is_named_with_what_would_be_right(
    tmp_path: Path, text: str | bytes, chosen: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        _load(tmp_path, text, **chosen)
    assert "bank" in str(caught.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [("id,y,a", "the columns b are missing"), ("id,y,a,b,c", "the training file has no columns c")],
)
def test_a_test_file_has_the_training_files_columns(tmp_path: Path, header: str, message: str) -> None:
    line = ",".join("1" for _ in header.split(","))
    with pytest.raises(BadInput, match=message):
        _load(tmp_path, TABLE, f"{header}\n{line}\n")


def test_a_table_without_labels_is_prepared_like_the_training_file(tmp_path: Path) -> None:
    _load(tmp_path, TABLE)
    (tmp_path / "new.csv").write_text("b,a\n60,3\n,5\n", encoding="utf-8")
    config = _config(scale="minmax", missing="mean")
    assert load_features(config, tmp_path, tmp_path / "new.csv").tolist() == [[0.5, 1], [1, pytest.approx(0.4)]]
    with pytest.raises(BadInput, match="line 3: column b has no value"):
        load_features(_config(missing="drop"), tmp_path, tmp_path / "new.csv")
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        load_features(config, tmp_path, tmp_path / "none.csv")
