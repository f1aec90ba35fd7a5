"""The order of an epoch: a seeded shuffle that mixes across shards and keeps a bounded number of them open.

Shuffles sort 64-bit keys drawn from Philox instead of calling `Generator.permutation`: NumPy keeps the raw stream of a
bit generator the same in all versions, but not what a Generator makes of it; a stable sort gives one answer on every
CPU.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Counts = NDArray[np.int32]

# What a stream of random bits is for: the word after (seed, epoch) in its key.
SHARDS, SAMPLES, WINDOWS, PACKS = range(4)


def random_bits(count: int, *key: int) -> NDArray[np.uint64]:
    """`count` 64-bit words that depend on `key` alone, e.g. (seed, epoch, purpose, block)."""
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count)


def shuffled(count: int, *key: int) -> Ints:
    """A permutation of 0 … count − 1 that depends on `key` alone; int64 [count]."""
    return np.argsort(random_bits(count, *key), kind="stable").astype(np.int64)


def epoch_order(shard_samples: Ints, *, seed: int, epoch: int, block_shards: int) -> Ints:
    """All samples once, in the order of one epoch.

    The shards are shuffled, then the samples of `block_shards` shards at a time: a reader that follows the order has at
    most that many shards open, a sample may land anywhere, and up to `block_shards` shards the shuffle is a full one.

    Args:
        shard_samples: int64 [shards], the number of samples in each shard.
        seed, epoch: non-negative; each pair has its own order.
        block_shards: shards mixed with one another, ≥ 1.
    Returns:
        int64 [samples], sample numbers as the index counts them (shard after shard).
    """
    shards = len(shard_samples)
    starts = np.concatenate([[0], np.cumsum(shard_samples)])
    permuted = shuffled(shards, seed, epoch, SHARDS)
    blocks = []
    for number, first in enumerate(range(0, shards, block_shards)):
        members = permuted[first : first + block_shards]
        samples = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in members])
        blocks.append(samples[shuffled(len(samples), seed, epoch, SAMPLES, number)])
    return np.concatenate(blocks) if blocks else np.zeros(0, np.int64)
