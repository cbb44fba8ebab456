"""`fedsim predict`: predictions of a checkpoint for data on this machine, without server and network."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import click

from fedsim.cli.options import json_option
from fedsim.cli.output import Output
from fedsim.errors import BadInput, NotThere


@click.command()
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="A .safetensors file of fedsim.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A file or folder with examples.")
@click.option("--output", type=click.Path(path_type=Path), help="The file to write [default: standard output].")
@click.option("--force", is_flag=True, help="Overwrite an existing output file.")
@click.option(
    "--dataset-format",
    help="idx, npz, csv, digits, cifar10 or an installed format; detected from the files if omitted.",
)
@click.option(
    "--label-column",
    "label_columns",
    multiple=True,
    help="The column of a table with the class, or with numbers or flags (repeat it) [default: there are no labels].",
)
@click.option(
    "--part", type=click.Choice(["test", "train"]), help="The part of a data set to predict [default: the test set]."
)
@click.option("--like", metavar="DATASET", help="Scale and fill a table like this node's data set of that name.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("/etc/fedsim/client.yml"),
    show_default=True,
    help="For --like: the node's YAML file.",
)
@json_option
def predict(
    *,
    checkpoint: Path,
    data: Path,
    output: Path | None,
    force: bool,
    dataset_format: str | None,
    label_columns: tuple[str, ...],
    part: str | None,
    like: str | None,
    config: Path,
    as_json: bool,
) -> None:
    """Predict with a checkpoint: the classes of examples, or what else its task has learned.

    Writes CSV: for each example its label, if the data has labels, the predicted class and the probability of each
    class; with numbers and flags a column for each of them. The classes of tokens or pixels are written to --output as
    an array of NumPy (.npy). If the data has labels, the metrics are printed to standard error (with --json to standard
    output; the predictions are then written only to --output).

    A node that scales its table trained on scaled columns: --like prepares new examples in the same way.
    """
    out = Output(as_json=as_json)
    for path in (checkpoint, *([data] if dataset_format is None else [])):
        if not path.exists():
            raise NotThere(f"{path} does not exist")
    if output is not None and output.exists() and not force:
        raise BadInput(f"{output} already exists: use another --output, or overwrite it with --force")
    from fedsim.cli.prediction import (  # noqa: PLC0415 - torch
        PredictionSource,
        as_json_values,
        load_examples,
        open_model,
    )
    from fedsim.cli.prediction_files import ARRAYS, write_predictions  # noqa: PLC0415 - with the above
    from fedsim.spool.durable import replacing  # noqa: PLC0415 - with the above

    model = open_model(checkpoint)
    if model.targets in ARRAYS and output is None and not as_json:
        raise BadInput(f"{checkpoint} predicts many classes of each example: write an array, --output FILE.npy")
    examples = load_examples(PredictionSource(data, dataset_format, label_columns, part, like, config), model)
    if not as_json or output is not None:
        try:
            with replacing(output) if output else nullcontext(sys.stdout.buffer) as file:
                write_predictions(model, examples, file)
        except OSError as error:
            raise BadInput(f"{output or 'standard output'} cannot be written: {error.strerror}") from error
    evaluation = model.evaluate(examples)
    if as_json:
        about = {"checkpoint": str(checkpoint), "output": str(output) if output else None}
        out.document({**about, "num_examples": len(examples.features), **as_json_values(evaluation)})
        return
    if model.targets == "classes" and model.data_schema is not None and (words := model.data_schema.labels):
        out.note(f"classes: {', '.join(f'{number} {word}' for number, word in enumerate(words))}")
    out.note(f"{len(examples.features)} examples ({examples.source}) predicted with {checkpoint}.")
    for line in model.describe(evaluation) if evaluation is not None else ():
        out.note(line)
