"""Tables as people have them: written by spreadsheets, pandas, R and databases, and described in YAML."""

from __future__ import annotations

import gzip
import random
import struct
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fedsim.config import ClientConfig, load_config
from fedsim.config.models import DataSetConfig
from fedsim.data import DataSet, load_dataset, load_features, table_scaling
from fedsim.data.load import dataset_digest
from fedsim.errors import BadInput, ConfigError

ROWS = [(0, -1.5, 5), (1, 0.25, 12), (0, 3.0, -8)]


def _load(folder: Path, content: str | bytes, name: str = "it.csv", **chosen: Any) -> DataSet:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return load_dataset(
        DataSetConfig.model_validate({"name": "it", "path": name, "label_column": "y"} | chosen), folder
    )


def _text(separator: str, decimal: str = ".", end: str = "\n") -> str:
    lines = [separator.join(("y", "a", "b"))]
    lines += [separator.join(str(cell).replace(".", decimal) for cell in row) for row in ROWS]
    return end.join(lines) + end


@pytest.mark.parametrize(
    ("name", "content", "chosen"),
    [
        ("it.csv", _text(","), {}),
        ("it.csv", _text(";"), {}),
        ("it.csv", _text(";", ","), {}),
        ("it.csv", _text("|"), {}),
        ("it.tsv", _text("\t"), {}),
        ("it.tsv", _text("\t", ",", "\r\n"), {}),
        ("it.tab", _text("\t"), {"separator": "tab"}),
        ("it.csv", _text(":"), {"separator": ":"}),
        ("it.csv.gz", gzip.compress(_text(";", ",").encode(), mtime=0), {}),
        ("it.TSV.gz", gzip.compress(_text("\t").encode(), mtime=0), {}),
        ("it.csv", "\ufeff" + _text(","), {}),
        ("it.csv", _text(",", end="\r"), {}),
        ("it.csv", 'y,a,b\n0,"-1.5",5\n1,0.25,12\n"0",3.0,-8', {}),
        ("it.csv", 'y,a,b\n0,-1.5,5\n1,0.25,12\n\n"0",3.0,-8', {}),
        ("it.csv", 'y;a;b\n0;"-1,5";5\n1;0,25;12\n0;3,0;-8\n', {}),
        ("it.csv", 'y,a,b\n0,"-1,5",5\n1,"0,25",12\n0,"3,0",-8\n', {"decimal": ","}),
        ("it.csv", "y;a;b\n0;-1,500;5\n1;0,250;12\n0;3,000;-8\n", {"decimal": ","}),
    ],
)
def test_every_dialect_gives_the_same_examples(
    tmp_path: Path, name: str, content: str | bytes, chosen: dict[str, Any]
) -> None:
    dataset = _load(tmp_path, content, name, **chosen)
    assert dataset.train.labels.tolist() == [0, 1, 0]
    assert dataset.train.features.tolist() == [[-1.5, 5], [0.25, 12], [3, -8]]


@pytest.mark.parametrize(
    "columns",
    [
        {"y": [0, 1, 0], "a": [-1.5, 0.25, 3.0], "b": [5, 12, -8]},
        {"y": [False, True, False], "a": ["-1.5", "0.25", "3"], "b": [5.0, 12.0, -8.0]},
        {"y": [0.0, 1.0, 0.0], "a": pl.Series(["-1.50", "0.25", "3.00"]).cast(pl.Decimal(5, 2)), "b": [5, 12, -8]},
        {"y": ["0", "1", "0"], "a": [-1.5, 0.25, 3.0], "b": [5, 12, -8], "__index_level_0__": [7, 8, 9]},
    ],
)
def test_parquet_gives_the_same_examples(tmp_path: Path, columns: dict[str, Any]) -> None:
    pl.DataFrame(columns).write_parquet(tmp_path / "it.parquet")
    config = DataSetConfig.model_validate({"name": "it", "path": "it.parquet", "label_column": "y"})
    dataset = load_dataset(config, tmp_path)
    assert dataset.train.labels.tolist() == [0, 1, 0]
    assert dataset.train.features.tolist() == [[-1.5, 5], [0.25, 12], [3, -8]]
    (tmp_path / "new.tsv").write_text("b\ta\n5\t-1.5\n", encoding="utf-8")
    assert load_features(config, tmp_path, tmp_path / "new.tsv").tolist() == [[-1.5, 5]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"y": [0, 1], "a": [1.0, None]}, "row 2: column a has no value"),
        ({"y": [0, 1], "a": [1.0, float("nan")]}, "row 2: column a has no value"),
        ({"y": [0, 1], "a": [1.0, float("inf")]}, "row 2: column a: 'inf' is not a finite number"),
        ({"y": [0, 1], "a": [[1], [2]]}, r"column a has the type List.*; save it as numbers"),
        ({"y": [0, 1], "a": pl.Series([1, 2]).cast(pl.Date)}, "column a has the type Date"),
        ({"z": [0, 1], "a": [1, 2]}, "no label_column 'y'; columns are z, a"),
        ({"y": [0, None], "a": [1, 2]}, "row 2: the label is missing"),
        ({"y": [0.0, 0.5], "a": [1, 2]}, "row 2: the label '0.5' is not a class number"),
    ],
)
def test_a_problem_in_parquet_is_named_with_its_row(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    pl.DataFrame(columns).write_parquet(tmp_path / "it.parquet")
    config = DataSetConfig.model_validate({"name": "it", "path": "it.parquet", "label_column": "y"})
    with pytest.raises(BadInput, match=rf"it\.parquet.*{message}"):
        load_dataset(config, tmp_path)


MARKS = ["", "?", ".", "NA", "n/a", "NaN", "NULL", r"\N", "<NA>", "#N/A", "#NV", "#DIV/0!", "#WERT!", " #REF! "]


@pytest.mark.parametrize("mark", [*MARKS, "-999", "-999.0", "unknown"])
def test_marks_of_a_missing_value_are_known_or_listed(tmp_path: Path, mark: str) -> None:
    listed = {"missing_values": [-999, "unknown"]} if mark not in MARKS else {}
    dataset = _load(tmp_path, f"y,a,b\n0,1,{mark}\n1,2,3\n", missing="mean", **listed)
    assert dataset.train.features.tolist() == [[1, 3], [2, 3]]
    assert len(_load(tmp_path, f"y,a,b\n0,1,{mark}\n1,2,3\n", missing="drop", **listed).train) == 1
    with pytest.raises(BadInput, match="line 2: column b has no value"):
        _load(tmp_path, f"y,a,b\n0,1,{mark}\n1,2,3\n", **listed)


def test_another_mark_is_reported_with_the_key_that_lists_it(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"'unknown' is not a finite number; .* list it in `missing_values`"):
        _load(tmp_path, "y,a\n0,unknown\n1,2\n", missing="mean")


@pytest.mark.parametrize(
    ("content", "chosen", "message"),
    [
        (",y,a\n0,0,1\n1,1,2\n", {}, "line 1: column 1 has no name; .*`id_column: ''`"),
        ('"","y","a"\n"1",0,1\n"2",1,2\n', {}, "line 1: column 1 has no name"),
        ("Unnamed: 0,y,a\n0,0,1\n", {}, "line 1: column 1 has no name; .*`id_column: 'Unnamed: 0'`"),
        ("y,a\n1,0,1\n2,1,2\n", {}, "line 2: 3 values, but 2 columns in the header; if the first value is the name"),
        ("y,a,b,\n0,1,2,\n1,2,3,\n", {"missing": "mean"}, "line 1: the last column has no name; .*remove the comma"),
        ("y;a;b\n0;1;2;\n1;2;3;\n", {}, "line 2: 4 values, but 3 columns in the header; .*one semicolon too many"),
        ("-1.0,5,0\n-0.9,12,1\n", {}, "line 1: -1.0, 5, 0 look like values, .*add a first line with the names"),
        ("sep=;\ny;a\n0;1\n", {}, "line 1: sep=;? is an instruction to a spreadsheet"),
        ("y,a\n0,1_1\n", {}, "line 2: column a: '1_1' is not a finite number"),
        ("y,a\n1_0,1\n", {}, "line 2: the label '1_0' is not a class number"),
        ("y,a\n0,\uff11\n", {}, "line 2: column a: '\uff11' is not a finite number"),
        ('y,a\n0,"1,5"\n', {}, "line 2: column a: '1,5' is not .*decimal comma, set `decimal: ','`"),
        ("y;a\n0;1,500\n1;2,250\n", {}, "'1,500' may be a decimal fraction or thousands: set `decimal`"),
        ("y;a\n0;1.5\n1;2,5\n", {}, "line 3: column a: '2,5' is not a finite number; if its comma"),
        ("y;a\n0;1,5\n1;2,5\n1;1.500,5\n", {}, "line 4: column a: '1.500,5'"),
        ("y;a\n0;1,5\n1;2.5\n", {"decimal": ","}, "line 3: .*if the point is its decimal mark, set `decimal: '.'`"),
        ("y,a\n0,1\n".encode("utf-16"), {}, "not UTF-8 text but UTF-16; save the table as UTF-8"),
        (gzip.compress(b"y,a\n" + b"0,1\n" * 5000, mtime=0)[:-20], {}, "damaged gzip file"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_what_to_do(
    tmp_path: Path, content: str | bytes, chosen: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        _load(tmp_path, content, **chosen)


def test_an_index_can_be_left_out_by_name(tmp_path: Path) -> None:
    assert _load(tmp_path, ",y,a\n7,0,1\n8,1,2\n", id_column="").train.features.tolist() == [[1], [2]]
    assert _load(tmp_path, "Unnamed: 0,y,a\n7,0,1\n", id_column="Unnamed: 0").train.features.tolist() == [[1]]


@pytest.mark.parametrize(
    ("labels", "cells", "classes"),
    [
        ("{1: 0, 2: 1}", "1 2", [0, 1]),
        ("{1: 0, 2: 1}", "2.0 1.0", [1, 0]),
        ("{no: 0, yes: 1}", "no yes", [0, 1]),
        ("{on: 1, off: 0, ~: 2}", "off ~", [0, 2]),
        ("{010: 0, 1_1: 1}", "1_1 010", [1, 0]),
        ("{.: 0, NA: 1}", ". NA", [0, 1]),
    ],
)
def test_label_keys_are_text_as_it_is_written_in_yaml(
    tmp_path: Path, labels: str, cells: str, classes: list[int]
) -> None:
    (tmp_path / "client.yml").write_text(
        f"name: a\nserver: {{port: 1}}\ndatasets: [{{name: it, path: it.csv, label_column: y, labels: {labels}}}]\n"
    )
    (dataset,) = load_config(tmp_path / "client.yml", ClientConfig).datasets
    (tmp_path / "it.csv").write_text("y,a\n" + "".join(f"{cell},1\n" for cell in cells.split()), encoding="utf-8")
    assert load_dataset(dataset, tmp_path).train.labels.tolist() == classes


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("label_column: no", "datasets[0].label_column': must be in quotes: YAML reads no, off and false as false"),
        ("labels: {a: b}", "datasets[0].labels.a': must be a whole number"),
        ("missing: mena", "datasets[0].missing': must be one of error, drop, mean"),
        ("separator: ab", "datasets[0].separator': 'ab' must be one character, such as ';', or tab"),
        ("format_options: {label_column: y, share: 1}", "datasets[0].share': is not an option of csv (options: label_"),
        ("label_colum: y", "datasets[0].label_colum': is not an option of csv (options: label_column, id_column"),
    ],
)
def test_a_wrong_option_of_a_format_is_named_as_the_key_that_it_is(tmp_path: Path, options: str, problem: str) -> None:
    path = tmp_path / "client.yml"
    path.write_text(
        f"name: a\nserver: {{port: 1}}\ndatasets:\n  - name: it\n    path: it.csv\n    format: csv\n    {options}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path, ClientConfig)
    assert len(caught.value.problems) == 1
    assert f"At '{problem}" in caught.value.problems[0]


def test_columns_are_named_by_numbers_and_in_either_form_of_the_same_letters(tmp_path: Path) -> None:
    assert _load(tmp_path, "0,1,2\n1,5,6\n0,7,8\n", label_column=0, id_column=1).train.features.tolist() == [[6], [8]]
    for given, stored in (("NFC", "NFD"), ("NFD", "NFC")):
        name = unicodedata.normalize(stored, "größe.csv")
        content = unicodedata.normalize(stored, "klassé,größe\n0,1\n1,2\n")
        (tmp_path / name).write_text(content, encoding="utf-8")
        config = {"name": "it", "path": "größe.csv", "label_column": "klassé", "scale_values": {"größe": (1, 1)}}
        plain = {key: _normalised(given, value) for key, value in config.items()}
        assert load_dataset(DataSetConfig.model_validate(plain), tmp_path).train.features.tolist() == [[0], [1]]
        (tmp_path / name).unlink()


def _normalised(form: Any, value: Any) -> Any:
    if isinstance(value, dict):
        return {unicodedata.normalize(form, key): inner for key, inner in value.items()}
    return unicodedata.normalize(form, value)


def _numbers(count: int) -> list[str]:
    rng = random.Random(2)
    kinds: list[Callable[[], str]] = [
        lambda: repr(struct.unpack("<f", struct.pack("<f", rng.gauss(0, 10)))[0]),
        lambda: f"{rng.choice('+-')}{rng.randrange(10**25)}.{rng.randrange(10**9)}e-{rng.randrange(60)}",
        lambda: f"{rng.random() * 10 ** rng.randrange(-9, 9):.{rng.randrange(25)}f}",
        lambda: f".{rng.randrange(10**12)}",
        lambda: f"{rng.randrange(10**6)}.",
    ]
    return [rng.choice(kinds)() for _ in range(count)]


def test_numbers_are_rounded_correctly(tmp_path: Path) -> None:
    texts = [text for text in _numbers(20_000) if abs(float(text)) < 3e38]
    features = _load(tmp_path, "y,a\n" + "".join(f"0,{text}\n" for text in texts)).train.features
    assert np.array_equal(features[:, 0], np.array([float(text) for text in texts]).astype(np.float32))


@pytest.mark.parametrize("columns", [1, 2, 7])
@pytest.mark.parametrize("scale", ["standard", "minmax"])
@pytest.mark.parametrize("missing", [False, True])
def test_scaling_in_blocks_gives_the_bytes_of_scaling_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int, scale: str, missing: bool
) -> None:
    monkeypatch.setattr(table_scaling, "BLOCK_ROWS", 100)
    rng = np.random.default_rng(3)
    values = rng.normal(1e3, 1, size=(277, columns))
    if missing:
        values[rng.random(values.shape) < 0.1] = np.nan
    header = ",".join(["y", *(f"c{number}" for number in range(columns))])
    lines = (",".join(["1", *("" if np.isnan(value) else repr(float(value)) for value in row)]) for row in values)
    dataset = _load(tmp_path, "\n".join([header, *lines]) + "\n", scale=scale, missing="mean")
    present = ~np.isnan(values)
    mean = np.where(present, values, 0.0).sum(axis=0) / present.sum(axis=0)
    if scale == "standard":
        low, width = mean, np.sqrt((np.where(present, values - mean, 0.0) ** 2).sum(axis=0) / present.sum(axis=0))
    else:
        low = np.where(present, values, np.inf).min(axis=0)
        width = np.where(present, values, -np.inf).max(axis=0) - low
    expected = ((np.where(present, values, mean) - low) / width).astype(np.float32)
    assert np.array_equal(dataset.train.features, expected)


def test_digests_of_tables_are_those_of_earlier_versions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    header = "id,y,a,b,c\n"
    rows = "".join(f"{n},{n % 3},{a:.17g},{b:.6f},{c}\n" for n, (a, b, c) in enumerate(rng.normal(size=(500, 3)) * 1e3))
    content = (header + rows).replace(",-1", ",")
    dataset = _load(tmp_path, content, id_column="id", scale="standard", test_share=0.2, missing="mean")
    assert dataset_digest(dataset) == "e198dea537a05c9ab2ee059b7d487649723960fb9aecd1f5b524768bb8d7ac29"
