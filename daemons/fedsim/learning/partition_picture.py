"""Draws a partition as SVG: a disc for each client and label, and above them a bar for each client's size."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape
from math import ceil, sqrt

from fedsim.learning.examples import IntArray

MAX_CLIENTS = 100
"""Most clients in a picture: the first ones. So a page with a picture stays small."""
MAX_LABELS = 40
"""Most labels in a picture; further ones are left out."""
FEW_CLIENTS = 40
LEVELS = 12
"""Sizes of discs: discs of one size are one path, which takes a tenth of the bytes of as many circles."""
LETTERS = 14
_MARGIN, _BARS, _GAP, _FOOT = 112, 40, 10, 22


def draw_partition(counts: IntArray, labels: Sequence[str], clients: Sequence[str]) -> str:
    """Draw how many examples of each label each client holds.

    Args:
        counts: int64 [num_clients, num_labels].
        labels: the name of each label.
        clients: the name of each client, or none: they are numbered from 0.

    Returns:
        An SVG document without styles of its own but colours that a page's style sheet can override; a disc's area is
        in proportion to the number of examples.
    """
    shown = counts[:MAX_CLIENTS, :MAX_LABELS]
    num_clients, num_labels = shown.shape
    column, row = 16 if num_clients <= FEW_CLIENTS else 9, 16
    top = _BARS + _GAP
    width, height = _MARGIN + column * num_clients + 8, top + row * num_labels + _FOOT
    words = [
        f'<text x="{_MARGIN - 6}" y="{top + row * label + 12}" text-anchor="end">{_word(labels[label])}</text>'
        for label in range(num_labels)
    ]
    step = 1 if clients and num_clients <= 10 else 5 if num_clients <= FEW_CLIENTS else 10
    for client in range(0, num_clients, step):
        middle = _MARGIN + column * client + column // 2
        name = _word(clients[client]) if clients else str(client)
        words.append(f'<text x="{middle}" y="{height - 6}" text-anchor="middle">{name}</text>')
    sizes = counts[:MAX_CLIENTS].sum(axis=1)
    largest = max(1, int(sizes.max(initial=0)))
    bars = "".join(
        f"M{_MARGIN + column * client + column // 2} {_BARS}v{-max(1, round(_BARS * size / largest))}"
        for client, size in enumerate(sizes.tolist())
        if size
    )
    discs = "".join(
        f'<path stroke-width="{(min(column, row) - 1) * level / LEVELS:g}" d="{path}"/>'
        for level, path in sorted(_discs(shown, column, row, top).items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" fill="#666" stroke="none">'
        f'{"".join(words)}<path class="sizes" stroke="#b45309" stroke-width="{column - 4}" d="{bars}"/>'
        f'<g class="discs" stroke="#3566a5" stroke-linecap="round">{discs}</g></svg>\n'
    )


def _discs(shown: IntArray, column: int, row: int, top: int) -> dict[int, str]:
    """The discs as paths, by level. A line of no length with round ends is a disc."""
    most = max(1, int(shown.max(initial=0)))
    paths: dict[int, list[str]] = defaultdict(list)
    for client, counts in enumerate(shown.tolist()):
        for label, count in enumerate(counts):
            if count:
                x, y = _MARGIN + column * client + column // 2, top + row * label + row // 2
                paths[ceil(LEVELS * sqrt(count / most))].append(f"M{x} {y}h0")
    return {level: "".join(parts) for level, parts in paths.items()}


def _word(text: str) -> str:
    return escape(text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…")
