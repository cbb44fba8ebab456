"""The owner's command `fedsim-client speeds`: what this node has measured of its speed, and measuring it anew."""

from __future__ import annotations

import click

from fedsim.cli.output import Output, moment
from fedsim.client.speed_table import FILE, MeasuredSpeed, read_speeds, renew_speeds
from fedsim.command import State, exit_codes
from fedsim.config import ClientConfig, load_config
from fedsim.errors import EX_CONFIG, EX_DATA, EX_NO_PERMISSION, EX_OK, NotThere
from fedsim.runtime.daemon import CONFIG_PATH


@click.command(epilog=exit_codes(EX_OK, EX_DATA, EX_NO_PERMISSION, EX_CONFIG))
@click.argument("keys", nargs=-1)
@click.option("--renew", is_flag=True, help="Forget these results (without KEYS: all): the next task measures again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def speeds(context: click.Context, keys: tuple[str, ...], *, renew: bool, as_json: bool) -> int:
    """List how this node trains quickest, as it has measured (`auto` in the YAML file), or forget it.

    KEYS are those of the list, or how they begin. Run it as root or as the node's user, who may read its spool.
    """
    if isinstance(context.obj, State):
        context.obj.as_json = as_json
    output = Output(as_json=as_json)
    path = load_config(context.meta[CONFIG_PATH], ClientConfig).spool / FILE
    if renew:
        removed = renew_speeds(path, keys)
        if keys and not removed:
            raise NotThere(f"no result has a key that begins with {' or '.join(keys)} (see fedsim-client speeds)")
        shown = tuple(removed)
    else:
        content = read_speeds(path)
        shown = () if content is None else content.measured
        shown = tuple(one for one in shown if not keys or one.speed.key.startswith(keys))
    if as_json:
        output.document({"removed" if renew else "speeds": [one.model_dump(mode="json") for one in shown]})
    elif renew:
        output.say(f"{len(shown)} results are forgotten; the next task of each kind measures again.")
    elif not shown:
        output.say("Nothing is measured yet.")
    else:
        columns = ("key", "model", "examples", "batch", "engine", "workers", "threads", "chunk", "measured")
        output.table(columns, map(_row, shown), numbers=columns[2:4] + columns[5:8])
    return EX_OK


def _row(one: MeasuredSpeed) -> tuple[object, ...]:
    speed, request = one.speed, one.request
    numbers = (speed.workers, speed.threads, speed.chunk_clients)
    model = f"{request.model_spec.name} {'x'.join(map(str, request.model_spec.feature_shape))}"
    return speed.key[:8], model, request.examples, request.batch_size, speed.engine, *numbers, moment(one.at)
