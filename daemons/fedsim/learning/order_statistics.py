"""Order statistics of updates, number by number: the median, or the sum of the middle ones.

A sorting network compares whole blocks with each other, two vector operations for each comparator, where sorting each
number's column alone would take one branch after another.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache

import numpy as np

from fedsim.learning.examples import FloatArray

BLOCK = 2**15
"""Numbers of each update that are compared together, so that those of many updates stay in the cache."""
MOST_SORTED = 128
"""Updates up to which a network takes less time than numpy, whose work per column grows more slowly."""


@cache
def comparators(count: int, wanted: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """The comparators (i, j), i < j, that bring the smaller of two values to i, of Batcher's odd-even merge sort.

    Only those that the places `wanted` depend on are kept. Knuth, The Art of Computer Programming 3, algorithm 5.2.2M.

    Args:
        count: how many values are sorted.
        wanted: places of the sorted order, counted from 0, that are needed.
    """
    found: list[tuple[int, int]] = []
    top = 1 << max(0, (count - 1).bit_length() - 1)
    part = top
    while part:
        distance, offset, step = part, 0, top
        while True:
            found += [(i, i + distance) for i in range(count - distance) if i & part == offset]
            if step == part:
                break
            distance, offset, step = step - part, part, step // 2
        part //= 2
    needed, kept = set(wanted), []
    for pair in reversed(found):
        if not needed.isdisjoint(pair):
            needed.update(pair)
            kept.append(pair)
    return tuple(reversed(kept))


def middle_mean(updates: Sequence[FloatArray], trimmed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The mean of what is left of each number when the `trimmed` smallest and largest are left out.

    Args:
        updates: float32 [b] each, without NaN.
        trimmed: at each end, less than half of the updates.

    Returns:
        float64 [b], summed from the smallest to the largest.
    """
    count, size = len(updates), len(updates[0])
    if not 0 <= 2 * trimmed < count:
        raise ValueError(f"of {count} updates {trimmed} cannot be left out at each end")
    kept = range(trimmed, count - trimmed)
    mean = np.empty(size)
    rows = np.empty((count + 1, min(BLOCK, size)), np.float32)
    for start in range(0, size, BLOCK):
        here = slice(start, min(start + BLOCK, size))
        block = rows[:, : here.stop - here.start]
        for row, update in zip(block, updates, strict=False):
            row[:] = update[here]
        total = mean[here]
        total[:] = 0.0
        for row in _sorted(block, kept):
            total += row
        total /= len(kept)
    return mean


def _sorted(block: FloatArray, wanted: Collection[int]) -> list[FloatArray]:
    """The rows at the places `wanted` when each column of `block` but the last row, which is scratch, is sorted."""
    *rows, spare = list(block)
    if len(rows) > MOST_SORTED:
        block[:-1].partition(sorted({min(wanted), max(wanted)}), axis=0)
        block[min(wanted) : max(wanted) + 1].sort(axis=0)
        return [rows[place] for place in wanted]
    for low, high in comparators(len(rows), tuple(wanted)):
        np.minimum(rows[low], rows[high], out=spare)
        np.maximum(rows[low], rows[high], out=rows[high])
        rows[low], spare = spare, rows[low]
    return [rows[place] for place in wanted]
