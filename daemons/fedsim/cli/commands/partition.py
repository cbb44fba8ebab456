"""`fedsim partition`: how a task divides a data set among its clients, before it is submitted or after."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsim.cli.options import open_api, web_options
from fedsim.cli.output import Output
from fedsim.cli.settings_file import override, read_settings, set_option
from fedsim.errors import BadInput, NotThere

if TYPE_CHECKING:
    from fedsim.learning.partition_view import PartitionView


@click.command()
@click.argument("file", required=False)
@set_option
@click.option("--task", type=click.IntRange(1), metavar="NUMBER", help="A submitted task, instead of settings.")
@click.option("--data", type=click.Path(path_type=Path), help="A file or folder with examples on this machine.")
@click.option("--dataset-format", help="For --data: the format; detected from the files if omitted.")
@click.option("--label-column", help="For --data: the column of a table with the label.")
@click.option("--like", metavar="DATASET", help="A node's own data set of that name, as --config describes it.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("/etc/fedsim/client.yml"),
    show_default=True,
    help="For --like: the node's YAML file.",
)
@click.option("--svg", type=click.Path(path_type=Path), help="The picture to write.")
@click.option("--csv", "table", type=click.Path(path_type=Path), help="The CSV file to write, a line for each client.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@web_options
def partition(
    *,
    file: str | None,
    overrides: tuple[tuple[str, str], ...],
    task: int | None,
    data: Path | None,
    dataset_format: str | None,
    label_column: str | None,
    like: str | None,
    config: Path,
    svg: Path | None,
    table: Path | None,
    force: bool,
    url: str | None,
    token_file: Path | None,
    insecure_plaintext: bool,
    as_json: bool,
) -> None:
    """Show how a task divides its data among clients: sizes, labels, and how far they are apart.

    The settings are in FILE and --set, as for `fedsim submit`; missing ones have their defaults. With --data or --like
    the data is read here and nothing is asked of the web. Otherwise the web draws what the nodes' owners let it show.
    A row is a client, a column a label, dark where the client holds much of it.

    Distances are total variation: 0 if the labels are alike, 1 if no label is in common.
    """
    if task is not None and (file is not None or overrides or data is not None or like is not None):
        raise click.UsageError("--task shows a submitted task: omit FILE, --set, --data and --like.")
    if data is not None and like is not None:
        raise click.UsageError("--data and --like are mutually exclusive.")
    for path in (svg, table):
        if path is not None and path.exists() and not force:
            raise BadInput(f"{path} already exists: use another name, or overwrite it with --force")
    out = Output(as_json=as_json)
    settings = override({} if file is None else read_settings(file), overrides)
    if data is not None or like is not None:
        from fedsim.cli.local_partition import view_of_file, view_of_node  # noqa: PLC0415 - imports numpy

        if like is not None:
            view = view_of_node(settings, like, config)
        elif data is not None:
            view = view_of_file(settings, data, dataset_format, label_column)
        hidden: Sequence[str] = ()
    else:
        with open_api(url, token_file, insecure_plaintext=insecure_plaintext) as api:
            answer = api.task_partition(task) if task is not None else api.partition(settings)
        if answer["partition"] is None:
            raise NotThere(answer["reason"])
        from fedsim.learning.partition_view import PartitionView  # noqa: PLC0415 - imports numpy

        view, hidden = PartitionView.of_document(answer["partition"]), answer["hidden"]
    _write(view, svg, table)
    if out.as_json:
        out.document(view.document())
        return
    if view.labels:
        out.say(f"labels: {', '.join(view.labels)}")
    for line in str(view).splitlines():
        out.say(line)
    if not view.exact:
        out.note("The sizes are those of the task; the labels are an example: only how many have each label is known.")
    if hidden:
        out.note(f"Not shown, by their owners' choice: {', '.join(hidden)}")


def _write(view: PartitionView, svg: Path | None, table: Path | None) -> None:
    from fedsim.spool.durable import replacing  # noqa: PLC0415 - with the above

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(view.csv_rows())
    for path, content in ((svg, view.svg()), (table, text.getvalue())):
        if path is None:
            continue
        try:
            with replacing(path) as file:
                file.write(content.encode())
        except OSError as error:
            raise BadInput(f"{path} cannot be written: {error.strerror}") from error
