"""Rounds to a target accuracy on MNIST: McMahan et al. 2017, "Communication-efficient learning of deep networks from
decentralized data", tables 1 and 2, C = 0.1 of 100 clients.

The paper chooses the best learning rate of a grid for each row; here the grid is stated, and all of it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from records import Found, Row
from running import mnist, run

GRIDS = {"10": (0.05, 0.1, 0.2), "50": (0.05, 0.1, 0.2), "∞": (0.1, 0.2, 0.5)}
WHOLE = 600
"""Examples of a client: a batch of all of them is B = ∞."""


@dataclass(frozen=True)
class Line:
    """A line of the paper's tables: rounds that it needed with IID and with non-IID data."""

    model: str
    epochs: int
    batch: str
    iid: int
    non_iid: int

    def name(self, data: str, rate: float) -> str:
        """Of a row of this line."""
        return f"{self.model}-{data}-e{self.epochs}-b{'inf' if self.batch == '∞' else self.batch}-lr{rate:g}"


# C = 0.1; table 1 has 2NN and E = 5 of the CNN, table 2 the others.
PUBLISHED = (
    Line("2nn", 1, "∞", 1474, 1796),
    Line("2nn", 1, "10", 87, 664),
    Line("cnn", 1, "10", 34, 350),
    Line("cnn", 5, "10", 20, 229),
    Line("cnn", 1, "50", 65, 600),
    Line("cnn", 1, "∞", 626, 483),
    Line("cnn", 5, "∞", 179, 1000),
    Line("cnn", 5, "50", 29, 334),
    Line("cnn", 20, "∞", 234, 672),
    Line("cnn", 20, "50", 32, 426),
    Line("cnn", 20, "10", 18, 173),
)
MODELS = {"2nn": ("2nn", 0.97), "cnn": ("cnn", 0.99)}
DATA = {"iid": "iid", "non-iid": "shards"}


def rows() -> Sequence[Row]:
    """Each line with IID and non-IID data and each learning rate, for at most twice the paper's rounds."""
    found = []
    for line in PUBLISHED:
        model, target = MODELS[line.model]
        for data, partition in DATA.items():
            most = 2 * (line.iid if data == "iid" else line.non_iid)
            for rate in GRIDS[line.batch]:
                settings = {
                    "model": model,
                    "partition": partition,
                    "num_clients": 100,
                    "fraction_train": 0.1,
                    "local_epochs": line.epochs,
                    "local_batch_size": WHOLE if line.batch == "∞" else int(line.batch),
                    "local_learning_rate": rate,
                    "num_rounds": most,
                    "evaluate_every": 1,
                    "stop_when": [f"accuracy >= {target}"],
                }
                found.append(Row(line.name(data, rate), settings))
    return found


def compute(row: Row) -> Found:
    """The round whose model first reached the target; None: the last one did not."""
    result = run(row.settings, mnist())
    last = result.rounds[-1]
    reached = last.metrics["accuracy"] >= float(row.settings["stop_when"][0].split()[-1])
    best = max(done.metrics["accuracy"] for done in result.rounds if done.metrics)
    return Found({"rounds": float(last.round) if reached else None, "best_accuracy": best}, result.digest)


def markdown(found: Mapping[str, Found]) -> str:
    """A line for each line of the paper and each kind of data of which something is recorded."""
    head = "| model | target | data | E | B | learning rate: rounds | best | paper |"
    lines = [head, "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for line in PUBLISHED:
        for data in DATA:
            published = line.iid if data == "iid" else line.non_iid
            here = {rate: found[name] for rate in GRIDS[line.batch] if (name := line.name(data, rate)) in found}
            if not here:
                continue
            rounds = {rate: one.figures["rounds"] for rate, one in here.items()}
            each = ", ".join(
                f"{rate:g}: {f'over {2 * published}' if count is None else f'{count:.0f}'}"
                for rate, count in rounds.items()
            )
            reached = [count for count in rounds.values() if count is not None]
            best = f"**{min(reached):.0f}**" if reached else f"over {2 * published}"
            shown = "2NN" if line.model == "2nn" else "CNN"
            target = f"{MODELS[line.model][1]:.0%}"
            cells = (shown, target, data, str(line.epochs), line.batch, each, best, str(published))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
