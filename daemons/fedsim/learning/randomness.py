"""Where randomness comes from: each use in a task has a stream of its own, found from what it is for.

No stream is ever continued, so nothing about randomness has to be stored, and the order in which clients are trained,
on whichever node, cannot change what they draw.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The random stream for one purpose of the task with this seed.

    Args:
        seed: the task's.
        purpose: what the stream is for, such as "batches".
        numbers: which of them, such as the round and the client.

    Returns:
        A fresh Philox generator; equal arguments give equal streams, different ones independent streams.
    """
    # SeedSequence cuts large integers into words, so that [2**32] and [0, 1] would collide; a digest has one length.
    digest = blake2b(repr((seed, purpose, numbers)).encode(), digest_size=32).digest()
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(int.from_bytes(digest, "little"))))
