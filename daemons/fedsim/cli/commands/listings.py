"""Commands that list rounds, nodes, and the options of tasks."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from typing import Any

import click

from fedsim.cli.api import ApiClient, Json
from fedsim.cli.follow import in_order, metric_name, metric_text
from fedsim.cli.options import asks_web
from fedsim.cli.output import NONE, Output, moment, number, share, size
from fedsim.contribution_table import ContributionRow


@click.command()
@click.argument("task", metavar="NUMBER", type=click.IntRange(1))
@click.option("--csv", "as_csv", is_flag=True, help="As CSV with all columns, a line for each round.")
@asks_web
def rounds(api: ApiClient, out: Output, task: int, as_csv: bool) -> None:
    """Show the rounds of task NUMBER; round 0 is the evaluation of the initial model."""
    if as_csv and out.as_json:
        raise click.UsageError("--csv and --json are mutually exclusive.")
    found = api.rounds(task)
    if out.as_json:
        out.document({"rounds": found})
    elif as_csv:
        write_rounds(api.task(task), found)
    elif found:
        rounds_table(out, api.task(task), found)
    else:
        out.note(f"Task {task} has no rounds yet.")


def _measured(record: Json) -> Json:
    return {**record["metrics"], **record["train_metrics"]}


def rounds_table(out: Output, task: Json, found: list[Json]) -> None:
    """Show rounds of the task as a table."""
    names = in_order((name for record in found for name in _measured(record)), task)
    columns = [
        "round",
        *map(metric_name, names),
        "examples",
        "missing",
        "missing examples",
        "seconds",
        "sent",
        "received",
    ]
    rows = [
        [
            record["round"],
            *(metric_text(name, _measured(record).get(name), task) for name in names),
            record["num_examples"],
            f"{len(record['missing'])} of {record['cohort_size']}" if record["missing"] else NONE,
            share(record["missing_share"]) if record["missing_share"] else NONE,
            number(record["seconds"].get("all", sum(record["seconds"].values())), 3),
            size(record["bytes_sent"]),
            size(record["bytes_received"]),
        ]
        for record in found
    ]
    out.table(columns, rows, numbers=columns)


def node_tests_table(out: Output, task: Json, record: Json) -> None:
    """Show the tests of a round on the nodes' own data."""
    tests = record["node_metrics"]
    names = in_order(tests["mean"], task)

    def cell(name: str, found: Json) -> str:
        if name not in found or found[name][0] is None:
            return NONE
        value, low, high = (None if one is None else metric_text(name, one, task) for one in found[name])
        return f"{value} ({low} – {high})" if low is not None else str(value)

    rows = [
        [node, one["num_examples"], *(cell(name, one["metrics"]) for name in names), one["withheld"]]
        for node, one in tests["nodes"].items()
    ]
    rows += [[node, NONE, *(NONE for _ in names), "did not report"] for node in tests["missing"]]
    rows.append(["all, weighted", NONE, *(cell(name, tests["mean"]) for name in names), ""])
    worst = (tests["worst"].get(name) for name in names)
    rows.append(["worst", NONE, *(NONE if one is None else one[0] for one in worst), ""])
    out.table([f"round {record['round']} on", "examples", *map(metric_name, names), "no numbers because"], rows)


def contributions_table(out: Output, number: int, found: Sequence[ContributionRow]) -> None:
    """Show what nodes, and clients of whom it is known, contributed to a round."""
    heading = [f"round {number} on", "clients", "examples", "training loss", "norm of update"]
    rows = [
        [
            one.node if one.client is None else f"client {one.client} of {one.node}",
            one.clients,
            one.examples,
            *one.figures,
        ]
        for one in found
    ]
    out.table([*heading, "mean norm of clients", "drift from mean", "cosine to mean"], rows)


def write_rounds(task: Json, found: list[Json]) -> None:
    """Write rounds of the task as CSV to standard output, in the columns of the web's download."""
    from fedsim.learning.metrics import (  # noqa: PLC0415 - imports numpy, which only this needs
        ROUND_COLUMNS,
        flat_class_values,
        flat_contributions,
        flat_node_values,
    )

    names = in_order((name for record in found for name in _measured(record)), task)
    phases = sorted({phase for record in found for phase in record["seconds"]})
    of_classes = [
        flat_class_values(record["class_metrics"])
        | flat_node_values(record["node_metrics"])
        | flat_contributions(record["contributions"])
        for record in found
    ]
    classes = sorted({place for values in of_classes for place in values})
    writer = csv.writer(sys.stdout, lineterminator="\n")
    heading = ["round", *names, *ROUND_COLUMNS, *(f"seconds_{phase}" for phase in phases)]
    writer.writerow([*heading, *("_".join(map(str, place)) for place in classes)])
    for record, by_class in zip(found, of_classes, strict=True):
        values = [record[name] for name in ROUND_COLUMNS]
        values[ROUND_COLUMNS.index("missing")] = " ".join(map(str, record["missing"]))
        measured = [record["round"], *map(_measured(record).get, names)]
        seconds = [record["seconds"].get(phase) for phase in phases]
        writer.writerow([*measured, *values, *seconds, *map(by_class.get, classes)])


@click.command()
@asks_web
def nodes(api: ApiClient, out: Output) -> None:
    """List the nodes with their latest announcements."""
    found = api.nodes()
    if out.as_json:
        out.document({"nodes": found})
    elif found:
        out.table(["node", "state", "seen", "clients", "device", "data sets", "problem"], map(_node_row, found))
    else:
        out.note("No node has announced itself yet.")


def _node_row(node: Json) -> list[Any]:
    state, seen, hello = "online" if node["online"] else "offline", moment(node["seen_at"]), node["hello"]
    if hello is None:
        return [node["name"], state, seen, NONE, NONE, NONE, node["problem"]]
    datasets = ", ".join(f"{info['name']} ({_extent(info)})" for info in hello["datasets"])
    notes = [f"{info['name']}: {note}" for info in hello["datasets"] for note in info["notes"]]
    problems = "; ".join([*hello["problems"], *notes])
    return [node["name"], state, seen, hello["clients"], hello["engine"]["device"], datasets or NONE, problems]


def _extent(info: Json) -> str:
    """The number of examples of a data set, and of a table also the number of its columns and their scaling."""
    schema = info["data_schema"]
    if schema is None or schema["kind"] != "table":
        return str(info["num_train"])
    scaling = "" if schema["scaling"] == "none" else f", scaling {schema['scaling']}"
    return f"{info['num_train']} x {len(schema['features'])} columns{scaling}"


@click.command()
@asks_web
def options(api: ApiClient, out: Output) -> None:
    """List models, data sets, and every setting with its default."""
    found = api.options()
    if out.as_json:
        out.document(found)
        return
    out.say(f"models: {', '.join(found['models'])}")
    for dataset in found["datasets"]:
        shape = " x ".join(map(str, dataset["feature_shape"]))
        online = "" if dataset["online"] else ", no node online"
        out.say(
            f"data set {dataset['name']}: {dataset['num_train']} examples of {shape}, "
            f"{dataset['num_classes']} classes, on {', '.join(dataset['nodes'])}{online}"
        )
    if not found["datasets"]:
        out.say("data sets: none announced yet")
    out.say("")
    described = found["schema"]["properties"]

    def several(setting: str) -> bool:
        return bool(described.get(setting, {}).get("type") == "array")

    rows = [
        (
            name,
            NONE if default in ("", []) else default,
            _names(found, name) or _values(described[name]),
            described[name].get("description", ""),
        )
        for name, default in found["defaults"].items()
        if not name.endswith("_options")
    ]
    out.table(["setting", "default", "values", "description"], rows)
    options_rows = [
        (
            plugin["name"],
            f"{setting}_options.{plugin['name']}.{name}" if several(setting) else f"{setting}_options.{name}",
            schema.get("default", NONE),
            _values(schema),
            description(schema),
        )
        for setting, offered in found["plugins"].items()
        if setting not in {"aggregation", "server_step"}  # they share the options of the strategies
        for plugin in offered
        for name, schema in plugin["options"].get("properties", {}).items()
    ]
    if options_rows:
        out.say("")
        out.table(["plug-in", "option", "default", "values", "description"], options_rows)


def description(schema: Json) -> str:
    """The description of a setting, from its JSON schema."""
    return str(schema.get("description", ""))


def _names(found: Json, setting: str) -> str:
    """The plug-ins that a setting can name; empty for other settings."""
    return ", ".join(plugin["name"] for plugin in found["plugins"].get(setting, []))


def _values(schema: Json) -> str:
    """The allowed values of a setting, from its JSON schema."""
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    start = f"from {low:g}" if low is not None else f"above {above:g}" if above is not None else ""
    end = f"to {high:g}" if high is not None else f"below {below:g}" if below is not None else ""
    return " ".join(part for part in (start, end) if part) or "text"
