"""The order of an epoch and the packing of it."""

import numpy as np
import pytest

from train.pipeline.order import epoch_order, shuffled
from train.pipeline.pack import best_fit, pack_epoch

PACKING = {"capacity": 100, "window": 64, "shuffle": True, "seed": 3}


def lengths_of(count: int, low: int = 5, high: int = 60) -> np.ndarray:
    return np.random.default_rng(count).integers(low, high, count).astype(np.int32)


def test_an_order_is_fixed_for_all_time():
    assert shuffled(8, 1, 2, 3).tolist() == [1, 2, 4, 6, 5, 0, 7, 3]
    assert epoch_order(np.array([3, 2, 4]), seed=5, epoch=1, block_shards=2).tolist() == [0, 7, 6, 8, 5, 2, 1, 3, 4]


def test_an_epoch_has_every_sample_once_and_epochs_and_seeds_differ():
    counts = np.array([10, 0, 33, 7])
    first, second, other = (
        epoch_order(counts, seed=seed, epoch=epoch, block_shards=64) for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    )
    for order in (first, second, other):
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order.tolist()) for order in (first, second, other)}) == 3


def test_a_reader_of_the_order_needs_no_more_shards_than_a_block_at_a_time():
    counts = np.full(12, 20)
    order = epoch_order(counts, seed=0, epoch=0, block_shards=4)
    for first in range(0, 240, 80):
        assert len(set(order[first : first + 80] // 20)) == 4


def test_the_shuffle_moves_samples_as_far_as_a_full_one():
    count = 200 * 50
    full = np.abs(shuffled(count, 9) - np.arange(count)).mean()
    ours = np.abs(epoch_order(np.full(200, 50), seed=0, epoch=0, block_shards=64) - np.arange(count)).mean()
    assert ours >= 0.95 * full


def test_no_pack_overflows_and_every_sample_is_in_one():
    lengths = lengths_of(500)
    packs = pack_epoch(shuffled(500, 1), lengths, epoch=0, **PACKING)
    assert sorted(packs.samples.tolist()) == list(range(500))
    assert all(lengths[packs.of(p)].sum() <= 100 for p in range(len(packs)))


def test_best_fit_takes_the_fullest_pack_that_has_room():
    lengths = np.array([70, 60, 35, 28, 5])
    assert best_fit(lengths, np.arange(5), 100) == [[0, 3], [1, 2, 4]]


@pytest.mark.parametrize(("low", "high", "at_least"), [(5, 60, 0.99), (19, 21, 0.94), (1, 100, 0.95)])
def test_packs_are_full(low: int, high: int, at_least: float):
    lengths = lengths_of(4000, low, high)
    packs = pack_epoch(shuffled(4000, 1), lengths, epoch=0, **(PACKING | {"window": 4000}))
    assert lengths.sum() / (100 * len(packs)) >= at_least


def test_samples_meet_others_in_the_next_epoch():
    lengths = np.arange(20, 45).repeat(8).astype(np.int32)
    together = []
    for epoch in (0, 1):
        order = epoch_order(np.array([200]), seed=0, epoch=epoch, block_shards=1)
        packs = pack_epoch(order, lengths, epoch=epoch, **PACKING)
        together.append({frozenset(packs.of(p).tolist()) for p in range(len(packs))})
    assert len(together[0] & together[1]) <= 0.05 * len(together[0])


def test_long_samples_do_not_come_first():
    lengths = lengths_of(1000, 10, 100)
    packs = pack_epoch(shuffled(1000, 1), lengths, epoch=0, **(PACKING | {"window": 1000}))
    sizes = [len(packs.of(p)) for p in range(len(packs))]
    half = len(sizes) // 2
    assert abs(np.mean(sizes[:half]) - np.mean(sizes[half:])) < 0.3


def test_windows_do_not_depend_on_one_another():
    lengths, order = lengths_of(200), shuffled(200, 1)
    whole = pack_epoch(order, lengths, epoch=0, **PACKING)
    head = pack_epoch(order[:128], lengths, epoch=0, **PACKING)
    assert head.samples.tolist() == whole.samples[:128].tolist()


def test_without_shuffle_packs_follow_the_samples():
    packs = pack_epoch(np.arange(100), lengths_of(100), epoch=0, **(PACKING | {"shuffle": False, "window": 10}))
    firsts = [int(packs.of(p)[0]) for p in range(len(packs))]
    assert firsts == sorted(firsts)


def test_nothing_makes_no_pack():
    packs = pack_epoch(np.zeros(0, np.int64), np.zeros(0, np.int32), epoch=0, **PACKING)
    assert len(packs) == 0
