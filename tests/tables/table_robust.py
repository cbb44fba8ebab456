"""Robust rules against attacks on MNIST: accuracy with 2 attackers among 11 clients, all of them in each round.

A logistic regression and few steps each round, so that all pairs take minutes: what is shown is the difference that an
attack makes, and whether the rule that is meant to resist does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from records import Found, Row
from running import mnist, run

CLIENTS = 11
ATTACKERS = 2
ROBUST = {"attackers": ATTACKERS}
RULES: dict[str, Mapping[str, Any]] = {
    "fedavg": {},
    "median": ROBUST,
    "trimmed_mean": ROBUST,
    "krum": ROBUST,
    "multi_krum": ROBUST,
    "bulyan": ROBUST,
    "geometric_median": ROBUST,
    "centered_clipping": ROBUST,
}
MIXED = ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "centered_clipping")
MIXING = {"pre_aggregation": "nearest_neighbour_mixing"}
ATTACKS: dict[str, Mapping[str, Any]] = {
    "": {},
    "sign_flip": {},
    "label_flip": {},
    "gaussian": {"sigma": 1.0},
    "alie": {},
    "inner_product": {},
    "min_max": {},
}
DATA: dict[str, Mapping[str, Any]] = {"iid": {}, "dirichlet": {"alpha": 0.5}}
RESISTS_WITHIN = 5.0
"""Points of accuracy that the worst attack may cost a rule that resists."""


def rows() -> Sequence[Row]:
    """Each rule, some also with nearest-neighbour mixing, against each attack with each division of the data."""
    rules = [(rule, rule, options) for rule, options in RULES.items()]
    rules += [(f"{rule}+nnm", rule, {**RULES[rule], **ROBUST, **MIXING}) for rule in MIXED]
    return [
        Row(
            f"{data}-{name}-{attack or 'none'}",
            {
                "model": "logistic",
                "partition": data,
                "partition_options": options,
                "num_clients": CLIENTS,
                "fraction_train": 1.0,
                "strategy": rule,
                "strategy_options": chosen,
                "attack": attack,
                "attack_options": {**attack_options, "attackers": ATTACKERS} if attack else {},
                "max_steps": 10,
                "local_epochs": 1,
                "local_batch_size": 50,
                "local_learning_rate": 0.1,
                "num_rounds": 60,
                "evaluate_every": 10,
            },
        )
        for data, options in DATA.items()
        for name, rule, chosen in rules
        for attack, attack_options in ATTACKS.items()
    ]


def compute(row: Row) -> Found:
    """The accuracy after the last round."""
    result = run(row.settings, mnist())
    return Found({"accuracy": result.rounds[-1].metrics["accuracy"]}, result.digest)


def cost(found: Mapping[str, Found], data: str, rule: str) -> float | None:
    """Points of accuracy that the worst attack costs a rule; None while a row is missing."""
    names = [f"{data}-{rule}-{attack or 'none'}" for attack in ATTACKS]
    if any(name not in found for name in names):
        return None
    none, *attacked = (100 * (found[name].figures["accuracy"] or 0.0) for name in names)
    return none - min(attacked)


def markdown(found: Mapping[str, Found]) -> str:
    """A table for each division: a line for each rule, a column for each attack, and what the worst one costs."""
    texts = []
    rules = [*RULES, *(f"{rule}+nnm" for rule in MIXED)]
    for data in DATA:
        head = [f"rule, {data}", *(attack or "no attack" for attack in ATTACKS), "worst costs"]
        lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        for rule in rules:
            cells = [
                f"{100 * value:.1f}" if one is not None and (value := one.figures["accuracy"]) is not None else "–"
                for attack in ATTACKS
                for one in [found.get(f"{data}-{rule}-{attack or 'none'}")]
            ]
            lost = cost(found, data, rule)
            lines.append(f"| {' | '.join([rule, *cells, '–' if lost is None else f'{lost:.1f}'])} |")
        texts.append("\n".join(lines))
    return "\n\n".join(texts) + "\n"
