"""Order statistics of updates, number by number: the median, or the sum of the middle ones.

A sorting network compares whole blocks with each other, two vector operations for each comparator, where sorting each
number's column alone would take one branch after another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

AnyFloats = NDArray[np.float32] | NDArray[np.float64]
Block = NDArray[np.float64]
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


def middle_mean(updates: Sequence[AnyFloats], trimmed: int) -> Block:
    """The mean of what is left of each number when the `trimmed` smallest and largest are left out.

    Args:
        updates: float32 or float64 [b] each, all of one type, without NaN.
        trimmed: at each end, less than half of the updates.

    Returns:
        float64 [b], summed from the smallest to the largest.
    """
    count = len(updates)
    if not 0 <= 2 * trimmed < count:
        raise ValueError(f"of {count} updates {trimmed} cannot be left out at each end")
    kept = range(trimmed, count - trimmed)

    def mean(rows: list[AnyFloats], total: Block) -> None:
        for row in rows:
            total += row
        total /= len(kept)

    return _of_sorted(updates, kept, mean)


def nearest_to_median_mean(updates: Sequence[AnyFloats], left_out: int) -> Block:
    """The mean of the values of each number that are nearest to its median.

    Args:
        updates: float32 or float64 [b] each, all of one type, without NaN.
        left_out: of each number so many values do not count, fewer than there are updates.

    Returns:
        float64 [b], summed from the smallest to the largest. Of two equally near values the smaller one counts.
    """
    count, kept = len(updates), len(updates) - left_out
    if not 0 <= left_out < count:
        raise ValueError(f"of {count} updates {left_out} cannot be left out")

    def mean(rows: list[AnyFloats], total: Block) -> None:
        median = (rows[(count - 1) // 2].astype(np.float64) + rows[count // 2]) / 2
        # The nearest values are neighbours in the sorted order: the window moves on while that brings a nearer one in.
        first = np.zeros(len(total), np.intp)
        for place in range(left_out):
            first += median - rows[place] > rows[place + kept] - median
        for place, row in enumerate(rows):
            total += np.where((first <= place) & (place < first + kept), row, 0.0)
        total /= kept

    return _of_sorted(updates, range(count), mean)


def _of_sorted(
    updates: Sequence[AnyFloats], wanted: Collection[int], combine: Callable[[list[AnyFloats], Block], None]
) -> Block:
    """What `combine` adds to zeros from the sorted rows at the places `wanted`, block by block."""
    count, size = len(updates), len(updates[0])
    found = np.zeros(size)
    rows = np.empty((count + 1, min(BLOCK, size)), updates[0].dtype)
    for start in range(0, size, BLOCK):
        here = slice(start, min(start + BLOCK, size))
        block = rows[:, : here.stop - here.start]
        for row, update in zip(block, updates, strict=False):
            row[:] = update[here]
        combine(_sorted(block, wanted), found[here])
    return found


def _sorted(block: AnyFloats, wanted: Collection[int]) -> list[AnyFloats]:
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
