"""Draws the state diagrams of the documentation from the transition tables: `make diagrams`.

The phases are drawn below one another. An arrow to the next phase is straight, all others are arcs: down on the right,
up on the left. Numbers refer to the rows of the table below the diagram on the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedsim.state_machines.node import NODE_TRANSITIONS
from fedsim.state_machines.phases import TASK_TRANSITIONS
from fedsim.state_machines.round import ROUND_TRANSITIONS
from fedsim.state_machines.transitions import TransitionTable

TABLES: dict[str, TransitionTable[Any]] = {
    "task": TASK_TRANSITIONS,
    "round": ROUND_TRANSITIONS,
    "node": NODE_TRANSITIONS,
}
PICTURES = Path(__file__).parents[1] / "pictures"
WIDTH, HEIGHT, STEP, LANE = 130, 38, 92, 34


def phases(table: TransitionTable[Any]) -> list[StrEnum]:
    """The phases of a table, in their order."""
    return list(type(table.initial[0]))


def draw(table: TransitionTable[Any]) -> str:
    """The diagram of a table, as SVG."""
    order = phases(table)
    place = {phase: 30 + index * STEP for index, phase in enumerate(order)}
    down = [row for row in table.rows if place[row.target] > place[row.source] + STEP]
    up = [row for row in table.rows if place[row.target] < place[row.source]]
    left = 60 + LANE * len(up)
    right = left + WIDTH
    width, height = right + 40 + LANE * len(down), 30 + STEP * len(order)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
            '     font-family="sans-serif" font-size="14">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8"',
            '  orient="auto-start-reverse"><path d="M0 0 10 5 0 10z" fill="#345"/></marker></defs>',
            *_boxes(table, place, left),
            *_arrows(table, place, left, right),
            "</svg>",
            "",
        ]
    )


def _boxes(table: TransitionTable[Any], place: dict[StrEnum, int], left: int) -> Iterator[str]:
    for phase, top in place.items():
        final = not any(row.source is phase for row in table.rows)
        yield (
            f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="9" stroke="#345"'
            f' stroke-width="{3 if final else 1.5}" fill="{"#dde8f5" if phase in table.initial else "#f6f8fb"}"/>'
        )
        yield f'<text x="{left + WIDTH // 2}" y="{top + 24}" text-anchor="middle" fill="#123">{phase.value}</text>'
        if phase in table.initial:
            yield f'<circle cx="{left - 30}" cy="{top + HEIGHT // 2}" r="6" fill="#345"/>'
            yield f'<path d="M{left - 24} {top + HEIGHT // 2}H{left - 2}" stroke="#345" marker-end="url(#arrow)"/>'


def _arrows(table: TransitionTable[Any], place: dict[StrEnum, int], left: int, right: int) -> Iterator[str]:
    labels = []  # drawn after all lines, so that none crosses a number
    lanes = {"down": 0, "up": 0}
    for number, row in enumerate(table.rows, 1):
        start, end = place[row.source], place[row.target]
        if end == start + STEP:
            x, y = left + WIDTH // 2, start + HEIGHT + (STEP - HEIGHT) // 2
            path = f"M{x} {start + HEIGHT}V{end - 2}"
        else:
            side = "down" if end > start else "up"
            lanes[side] += 1
            edge = right if side == "down" else left
            x = edge + (LANE if side == "down" else -LANE) * lanes[side]
            offset = 5 + 4 * (lanes[side] % 8)
            y = (start + end + HEIGHT) // 2 + (8 * lanes[side] if side == "down" else 0)
            path = f"M{edge} {start + offset}H{x}V{end + offset}H{edge + (2 if side == 'down' else -2)}"
        yield f'<path d="{path}" fill="none" stroke="#345" stroke-width="1.3" marker-end="url(#arrow)"/>'
        labels.append(f'<circle cx="{x}" cy="{y}" r="11" fill="#fff" stroke="#345"/>')
        labels.append(f'<text x="{x}" y="{y + 4}" text-anchor="middle" font-size="12" fill="#123">{number}</text>')
    yield from labels


def main() -> None:
    """Write all diagrams."""
    for name, table in TABLES.items():
        (PICTURES / f"state-{name}.svg").write_text(draw(table), encoding="utf-8")


if __name__ == "__main__":
    main()
