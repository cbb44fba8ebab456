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
FEW_NAMES = 8
STEPS = (1, 2, 5, 10, 20)
"""Each so many clients have their name or number below them."""
LEVELS = 12
"""Sizes of discs: discs of one size are one path, which takes a tenth of the bytes of as many circles."""
LETTERS = 14
LETTER_WIDTH = 8
_BARS, _GAP, _ROW, _FOOT = 40, 10, 16, 22


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
    names = [_word(name) for name in clients[:num_clients] or map(str, range(num_clients))]
    longest = LETTER_WIDTH * max(map(len, names), default=1)
    column = 16 if num_clients <= FEW_CLIENTS else 9
    if clients and num_clients <= FEW_NAMES:
        column = max(column, longest + 2)
    left = LETTER_WIDTH * max(map(len, map(_word, labels[:num_labels])), default=1) + longest // 2
    top = _BARS + _GAP
    height, width = top + _ROW * num_labels + _FOOT, left + column * num_clients + longest // 2
    columns = [left + column * client + column // 2 for client in range(num_clients)]
    words = [
        f'<text x="{left - 6}" y="{top + _ROW * label + 12}" text-anchor="end">{escape(_word(labels[label]))}</text>'
        for label in range(num_labels)
    ]
    step = next(step for step in STEPS if step * column > longest or step == STEPS[-1])
    words += [
        f'<text x="{columns[client]}" y="{height - 6}" text-anchor="middle">{escape(names[client])}</text>'
        for client in range(0, num_clients, step)
    ]
    sizes = counts[:MAX_CLIENTS].sum(axis=1)
    largest = max(1, int(sizes.max(initial=0)))
    bars = "".join(
        f"M{x} {_BARS}v{-max(1, round(_BARS * size / largest))}"
        for x, size in zip(columns, sizes.tolist(), strict=True)
        if size
    )
    discs = "".join(
        f'<path stroke-width="{(min(column, _ROW) - 1) * level / LEVELS:g}" d="{path}"/>'
        for level, path in sorted(_discs(shown, columns, top).items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12" fill="#666" stroke="none">'
        f'{"".join(words)}<path class="sizes" stroke="#b45309" stroke-width="{min(column, _ROW) - 4}" d="{bars}"/>'
        f'<g class="discs" stroke="#3566a5" stroke-linecap="round">{discs}</g></svg>\n'
    )


def _discs(shown: IntArray, columns: Sequence[int], top: int) -> dict[int, str]:
    """The discs as paths, by level. A line of no length with round ends is a disc."""
    most = max(1, int(shown.max(initial=0)))
    paths: dict[int, list[str]] = defaultdict(list)
    for x, counts in zip(columns, shown.tolist(), strict=True):
        for label, count in enumerate(counts):
            if count:
                paths[ceil(LEVELS * sqrt(count / most))].append(f"M{x} {top + _ROW * label + _ROW // 2}h0")
    return {level: "".join(parts) for level, parts in paths.items()}


def _word(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"
