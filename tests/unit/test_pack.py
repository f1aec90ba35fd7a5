"""The order of an epoch and the packing of it."""

import itertools

import numpy as np
import pytest

from train.pipeline.bound import fewest_packs
from train.pipeline.order import EpochOrder, Stream, shuffled
from train.pipeline.pack import PackList, best_fit, fullest, pack_window

PACKING = {"capacity": 100, "shuffle": True, "seed": 3, "epoch": 0, "window": 0}


def epoch_order(counts: np.ndarray, *, seed: int, epoch: int, block_shards: int, window: int = 10**9) -> np.ndarray:
    stream = Stream(counts.tolist(), seed=seed, block_shards=block_shards, shuffle=True, number=0)
    order = EpochOrder([stream], [stream.samples], window=window, seed=seed, shuffle=True)
    return np.concatenate([order.window(epoch, number) for number in range(order.windows)])


def packed(order: np.ndarray, lengths: np.ndarray, **settings: int) -> PackList:
    return pack_window(order, lengths[order].astype(np.int64), **(PACKING | settings))


def lengths_of(count: int, low: int = 5, high: int = 60) -> np.ndarray:
    return np.random.default_rng(count).integers(low, high, count).astype(np.int32)


def test_an_order_is_fixed_for_all_time():
    assert shuffled(8, 1, 2, 3).tolist() == [1, 2, 4, 6, 5, 0, 7, 3]
    assert epoch_order(np.array([3, 2, 4]), seed=5, epoch=1, block_shards=2).tolist() == [8, 6, 5, 7, 4, 2, 3, 1, 0]


def test_an_epoch_has_every_sample_once_and_epochs_and_seeds_differ():
    counts = np.array([10, 0, 33, 7])
    first, second, other = (
        epoch_order(counts, seed=seed, epoch=epoch, block_shards=64) for seed, epoch in [(0, 0), (0, 1), (1, 0)]
    )
    for order in (first, second, other):
        assert sorted(order.tolist()) == list(range(50))
    assert len({tuple(order.tolist()) for order in (first, second, other)}) == 3


@pytest.mark.parametrize("block_shards", [1, 5, 64])
def test_windows_are_stretches_of_one_order(block_shards: int):
    counts = np.arange(3, 40)
    whole = epoch_order(counts, seed=0, epoch=2, block_shards=block_shards)
    assert epoch_order(counts, seed=0, epoch=2, block_shards=block_shards, window=50).tolist() == whole.tolist()


def test_a_stream_goes_on_from_pass_to_pass():
    stream = Stream([4, 3], seed=0, block_shards=1, shuffle=True, number=0)
    order = stream.slice(0, 70)
    assert [sorted(order[begin : begin + 7].tolist()) for begin in range(0, 70, 7)] == [list(range(7))] * 10
    assert len({tuple(order[begin : begin + 7].tolist()) for begin in range(0, 70, 7)}) > 5
    assert stream.slice(5, 16).tolist() == order[5:16].tolist()


def test_a_reader_of_the_order_needs_no_more_shards_than_a_block_at_a_time():
    counts = np.full(13, 20)
    order = epoch_order(counts, seed=0, epoch=0, block_shards=4)
    shards = order // 20
    last_seen = {int(shard): place for place, shard in enumerate(shards)}
    first_seen = {int(shard): place for place, shard in reversed(list(enumerate(shards)))}
    for place in range(len(order)):
        assert sum(first_seen[shard] <= place <= last_seen[shard] for shard in range(13)) <= 4


@pytest.mark.parametrize("shards", [200, 65])
def test_the_shuffle_is_as_good_as_a_full_one(shards: int):
    count = shards * 50
    full = shuffled(count, 9)
    ours = [epoch_order(np.full(shards, 50), seed=0, epoch=epoch, block_shards=64) for epoch in range(20)]

    def displacement(order: np.ndarray) -> float:
        return float(np.abs(order - np.arange(count)).mean())

    def neighbours(order: np.ndarray) -> float:
        return float((order[1:] // 50 == order[:-1] // 50).mean())

    assert np.mean([displacement(order) for order in ours]) >= 0.95 * displacement(full)
    assert max(neighbours(order) for order in ours) <= neighbours(full) + 0.05


def test_no_pack_overflows_and_every_sample_is_in_one():
    for low, high in ((5, 60), (26, 33), (34, 80)):
        lengths = lengths_of(500, low, high)
        packs = packed(shuffled(500, 1), lengths)
        assert sorted(packs.samples.tolist()) == list(range(500))
        assert all(lengths[packs.of(p)].sum() <= 100 for p in range(len(packs)))


def test_best_fit_takes_the_fullest_pack_that_has_room():
    lengths = np.array([70, 60, 35, 28, 5])
    assert best_fit(lengths, np.arange(5), 100) == [[0, 3], [1, 2, 4]]


def test_the_fullest_completion_is_found_and_used_as_often_as_it_can_be():
    lengths = np.array([50, 50, 27, 27, 26, 26, 23, 23])
    packs = fullest(lengths, np.arange(8), 100)
    assert [sorted(lengths[pack].tolist()) for pack in packs] == [[50, 50], [23, 23, 27, 27], [26, 26]]


@pytest.mark.parametrize(
    ("low", "high", "share"), [(5, 60, 0.998), (19, 21, 1), (1, 100, 0.99), (26, 33, 0.99), (34, 50, 1), (30, 90, 0.97)]
)
def test_packs_are_as_full_as_can_be(low: int, high: int, share: float):
    lengths = lengths_of(4000, low, high)
    packs = packed(shuffled(4000, 1), lengths)
    assert fewest_packs(np.bincount(lengths), 100, len(packs)) >= share * len(packs)


@pytest.mark.parametrize("seed", range(40))
def test_no_packing_beats_the_bound(seed: int):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(*rng.choice([(20, 60), (30, 40), (3, 90)]), 7)
    best = 7
    for assignment in itertools.product(range(3), repeat=7):
        loads = np.bincount(assignment, lengths, 3)
        if loads.max() <= 100:
            best = min(best, len(set(assignment)))
    assert fewest_packs(np.bincount(lengths), 100, 7) <= best


def test_the_bound_sees_what_does_not_fit_together():
    assert fewest_packs(np.bincount([51] * 10 + [30] * 4), 100, 99) == 10
    assert fewest_packs(np.bincount([26] * 12), 100, 99) == 4
    assert fewest_packs(np.bincount([10] * 10), 100, 99) == 1


def test_samples_meet_others_in_the_next_epoch():
    lengths = np.arange(20, 45).repeat(8).astype(np.int32)
    together = []
    for epoch in (0, 1):
        order = epoch_order(np.array([200]), seed=0, epoch=epoch, block_shards=1)
        packs = packed(order, lengths, epoch=epoch)
        together.append({frozenset(packs.of(p).tolist()) for p in range(len(packs))})
    assert len(together[0] & together[1]) <= 0.05 * len(together[0])


def test_long_samples_do_not_come_first():
    lengths = lengths_of(1000, 10, 100)
    packs = packed(shuffled(1000, 1), lengths)
    sizes = [len(packs.of(p)) for p in range(len(packs))]
    half = len(sizes) // 2
    assert abs(np.mean(sizes[:half]) - np.mean(sizes[half:])) < 0.3


def test_without_shuffle_packs_follow_the_samples():
    packs = packed(np.arange(100), lengths_of(100), shuffle=False)
    firsts = [int(packs.of(p)[0]) for p in range(len(packs))]
    assert firsts == sorted(firsts)


def test_nothing_makes_no_pack():
    assert len(packed(np.zeros(0, np.int64), np.zeros(0, np.int32))) == 0
