"""The plan as a table of world sizes and steps."""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.pipeline import plan as plan_module
from train.pipeline.dealing import Pack, balance, deal_packs
from train.pipeline.lengths import Lengths
from train.pipeline.pack import pack_window
from train.pipeline.plan import Plan
from train.pipeline.spec import PlanError, PlanSpec, ShardRef, Source

WORLDS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 64)


class FakeCorpus:
    """As much of a corpus as a plan asks for."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def key(self, number: int) -> str:
        return f"k{number:05d}"


def lengths_of(tokens: np.ndarray) -> Lengths:
    ones = np.ones(len(tokens), np.int32)
    return Lengths(tokens=tokens.astype(np.int32), labels=ones, crops=3 * ones, num_crops=4 * ones)


def source(shard_samples: Sequence[int], weight: float | None = None) -> Source:
    shards = tuple(
        ShardRef(name=f"shard-{number:06d}.tar", sha256=f"{number:064x}", samples=samples)
        for number, samples in enumerate(shard_samples)
    )
    return Source(split="train", shards=shards, weight=weight)


def make_plan(count: int = 331, lengths: Lengths | None = None, cache: Path | None = None, **settings: Any) -> Plan:
    rng = np.random.default_rng(count)
    third = count // 3
    values = {
        "sources": (source((third, third, count - 2 * third)),),
        "tokenizer_hash": "0" * 64,
        "template": "bare",
        "num_crops": 4,
        "crop_size": 336,
        "tokens_per_side": 12,
        "pack_length": 1000,
        "window": 64,
        "over_long": "skip",
        "last_batch": "short",
        "shuffle": True,
        "seed": 0,
        "global_batch_packs": 7,
        "crops_per_chunk": 4,
        "labels_per_chunk": 64,
    } | settings
    lengths = lengths or Lengths(
        tokens=rng.integers(20, 400, count).astype(np.int32),
        labels=rng.integers(1, 30, count).astype(np.int32),
        crops=rng.integers(0, 6, count).astype(np.int32),
        num_crops=np.full(count, 4, np.int32),
    )
    return Plan(PlanSpec(**values), FakeCorpus(count), lengths, cache)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "world",
    [*WORLDS, *(pytest.param(world, marks=pytest.mark.soak) for world in range(1, 65) if world not in WORLDS)],
)
def test_any_number_of_ranks_trains_the_same_batches_with_equal_micro_steps(world: int):
    plan = make_plan()
    for step in range(plan.steps_until(2)):
        dealt = [plan.deal(step, rank, world) for rank in range(world)]
        packs = plan.batch(step).packs
        assert {len(steps) for steps in dealt} == {-(-len(packs) // world)}
        trained = sorted((m.pack for steps in dealt for m in steps if m.pack.samples), key=lambda pack: pack.number)
        assert tuple(trained) == packs
        empty = [m.pack.number for steps in dealt for m in steps if not m.pack.samples]
        assert sorted(empty) == list(range(len(packs), len(packs) + len(empty)))
        for micro in zip(*dealt, strict=True):
            assert len({(m.crop_chunks, m.label_chunks) for m in micro}) == 1
            assert micro[0].crop_chunks == max(1, max(-(-m.pack.crops // 4) for m in micro))
            assert micro[0].label_chunks == max(1, max(-(-m.pack.labels // 64) for m in micro))


def trained(plan: Plan, steps: range, world: int) -> list[list[tuple[int, tuple[int, ...]]]]:
    """What the ranks of a job train on, step by step: their packs put together."""
    together = []
    for step in steps:
        dealt = (micro.pack for rank in range(world) for micro in plan.deal(step, rank, world))
        together.append(sorted((pack.number, pack.samples) for pack in dealt if pack.samples))
    return together


def test_a_run_goes_on_at_any_step_with_any_number_of_ranks():
    straight = make_plan()
    steps = straight.steps_until(2) + 1
    expected = trained(straight, range(steps), 1)
    for stop, world in zip(range(1, steps), itertools.cycle(WORLDS)):
        assert trained(make_plan(), range(stop, steps), world) == expected[stop:]


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_large_plan_goes_on_at_any_step_with_any_number_of_ranks(tmp_path: Path):
    settings = {"count": 20_000, "window": 512, "global_batch_packs": 48, "cache": tmp_path}
    straight = make_plan(**settings)
    steps = straight.steps_until(3)
    expected = trained(straight, range(steps), 1)
    seen = [sample for batch in expected[: straight.steps_in(0)] for _, samples in batch for sample in samples]
    assert sorted(seen) == list(range(20_000))
    for world in range(1, 65):
        stop = steps * world // 65
        assert trained(make_plan(**settings), range(stop, steps), world) == expected[stop:]


def test_a_step_is_found_without_packing_what_lies_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    settings = {"count": 2000, "cache": tmp_path}
    straight = make_plan(**settings)
    last = straight.steps_until(3) - 1
    expected = straight.batch(last)
    packed = []
    monkeypatch.setattr(
        plan_module, "pack_window", lambda *given, **named: packed.append(0) or pack_window(*given, **named)
    )
    assert make_plan(**settings).batch(last) == expected
    assert 1 <= len(packed) <= 2


@pytest.mark.parametrize("last_batch", ["short", "wrap", "drop"])
def test_an_epoch_has_each_sample_once_by_the_rule_for_its_last_batch(last_batch: str):
    plan = make_plan(last_batch=last_batch)
    packs = [pack for step in range(plan.steps_in(0)) for pack in plan.batch(step).packs]
    seen = [sample for pack in packs for sample in pack.samples]
    if last_batch == "short":
        assert sorted(seen) == list(range(331))
        assert len(plan.batch(plan.steps_in(0) - 1).packs) < 7
    elif last_batch == "drop":
        assert len(seen) == len(set(seen)) < 331
        assert len(packs) % 7 == 0
    else:
        assert set(seen) == set(range(331))
        assert len(packs) % 7 == 0
        again = len(packs) - plan.figures().packs
        assert [pack.samples for pack in packs[-again:]] == [pack.samples for pack in packs[:again]]


def test_wrap_fills_a_batch_from_fewer_packs_than_it_has():
    plan = make_plan(count=9, last_batch="wrap", global_batch_packs=8)
    assert plan.steps_per_epoch == 1
    assert len(plan.batch(0).packs) == 8


def test_drop_without_a_full_batch_is_refused_with_what_to_do():
    with pytest.raises(PlanError, match="lower global_batch_packs or set last_batch"):
        make_plan(count=9, last_batch="drop", global_batch_packs=8).steps_in(0)


def test_steps_are_located_across_epochs_of_different_lengths():
    plan = make_plan(global_batch_packs=1, window=8)
    places = [(epoch, place) for epoch in range(4) for place in range(plan.steps_in(epoch))]
    assert len({plan.steps_in(epoch) for epoch in range(4)}) > 1
    assert [plan.locate(step) for step in range(len(places))] == places
    assert plan.steps_until(4) == len(places)


def test_a_sample_longer_than_a_pack_is_skipped_and_known_or_refused_by_key():
    tokens = np.full(30, 300, np.int32)
    tokens[11] = 1001
    lengths = lengths_of(tokens)
    plan = make_plan(count=30, lengths=lengths)
    assert plan.over_long.tolist() == [11]
    assert plan.figures().samples == 29
    with pytest.raises(PlanError, match=r"1 of 30 samples.*'k00011', longest 1001"):
        make_plan(count=30, lengths=lengths, over_long="error")
    with pytest.raises(PlanError, match="none of its 30 samples fits"):
        make_plan(count=30, lengths=lengths, pack_length=100)


@pytest.mark.parametrize("world", [4, 8])
def test_ranks_wait_less_for_one_another_than_dealt_in_order(world: int):
    plan = make_plan(count=4000, global_batch_packs=32, window=4000)
    waiting = np.zeros(2)
    for step in range(plan.steps_in(0) - 1):
        packs = plan.batch(step).packs
        in_order = [packs[first : first + world] for first in range(0, len(packs), world)]
        waiting += balance(deal_packs(packs, world)).waiting, balance(in_order).waiting
    assert waiting[0] < 0.92 * waiting[1]


def test_ranks_carry_equal_work_over_pictures_of_like_size():
    rng = np.random.default_rng(0)
    tokens = (rng.integers(20, 60, 4000) + rng.choice([145, 217, 301], 4000)).astype(np.int32)
    lengths = lengths_of(tokens)
    plan = make_plan(count=4000, lengths=lengths, global_batch_packs=256, window=4000)
    assert balance(deal_packs(plan.batch(0).packs, 64)).sums <= 1.05


def test_like_packs_share_a_micro_step():
    plan = make_plan(count=4000, global_batch_packs=32)
    rows = [[pack.work for pack in row] for row in deal_packs(plan.batch(0).packs, 8)]
    assert all(min(row) >= max(below) for row, below in itertools.pairwise(rows))


@pytest.mark.parametrize(("packs", "world"), [(16, 4), (18, 4), (256, 64), (7, 8)])
def test_exchanges_even_out_the_ranks_and_make_no_micro_step_longer(packs: int, world: int):
    rng = np.random.default_rng(packs)
    work = np.concatenate([rng.integers(370, 380, packs // 16), rng.integers(180, 250, packs - packs // 16)])
    batch = [
        Pack(number=number, samples=(number,), tokens=1, labels=1, crops=1, work=int(one))
        for number, one in enumerate(rng.permutation(work))
    ]
    rows = deal_packs(batch, world)
    assert sorted(pack.number for row in rows for pack in row) == list(range(-(-packs // world) * world))
    heaviest_first = np.sort([pack.work for row in rows for pack in row])[::-1].reshape(-1, world)
    assert [max(pack.work for pack in row) for row in rows] == heaviest_first[:, 0].tolist()
    as_sorted = heaviest_first.copy()
    as_sorted[1::2] = as_sorted[1::2, ::-1]
    assert balance(rows).sums <= as_sorted.sum(axis=0).max() / as_sorted.sum(axis=0).mean()
    assert rows == deal_packs(batch[::-1], world)


def test_a_heavy_pack_is_dealt_with_light_ones():
    work = [300] + [100] * 12 + [50] * 3
    batch = [
        Pack(number=number, samples=(number,), tokens=1, labels=1, crops=1, work=one) for number, one in enumerate(work)
    ]
    rows = deal_packs(batch, 4)
    assert max(sum(row[rank].work for row in rows) for rank in range(4)) == 300 + 3 * 50


def test_without_pictures_there_is_no_call_of_the_tower():
    lengths = lengths_of(np.full(30, 90))
    plan = make_plan(count=30, lengths=dataclasses.replace(lengths, crops=0 * lengths.crops))
    assert plan.deal(0, 0, 1)[0].crop_chunks == 0


def test_validation_goes_once_through_everything_in_the_same_order():
    plan = make_plan(shuffle=False)
    first = [pack.samples for step in range(plan.steps_in(0)) for pack in plan.batch(step).packs]
    again = [plan.batch(plan.steps_in(0) + step).packs for step in range(plan.steps_in(1))]
    assert first == [pack.samples for packs in again for pack in packs]
    assert sorted(sample for pack in first for sample in pack) == list(range(331))


def test_the_fingerprint_names_the_plan_and_survives_json():
    spec = make_plan().spec
    assert PlanSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    fingerprints = {spec.fingerprint(), make_plan().spec.fingerprint()}
    assert len(fingerprints) == 1
    for change in ({"seed": 1}, {"pack_length": 999}, {"num_crops": 16}, {"template": "phi3v"}, {"window": 63}):
        assert dataclasses.replace(spec, **change).fingerprint() not in fingerprints


def test_the_digest_of_a_step_follows_its_keys_and_their_packs():
    plan, other = make_plan(), make_plan(seed=1)
    assert plan.digest(3) == make_plan().digest(3)
    assert len({plan.digest(3), plan.digest(4), other.digest(3)}) == 3


@pytest.mark.parametrize(
    "change", [{"window": 0}, {"over_long": "cut"}, {"last_batch": "keep"}, {"seed": -1}, {"global_batch_packs": 0}]
)
def test_a_setting_out_of_range_is_refused_by_name(change: dict[str, Any]):
    with pytest.raises(PlanError, match=next(iter(change))):
        make_plan(**change)


def drawn(plan: Plan, steps: int) -> np.ndarray:
    """Samples of each source in the first steps."""
    samples = [sample for step in range(steps) for pack in plan.batch(step).packs for sample in pack.samples]
    return np.bincount(plan.source_of(np.array(samples)), minlength=len(plan.spec.sources))


def test_without_weights_all_sets_of_shards_are_gone_through_once_and_mixed():
    plan = make_plan(count=900, sources=(source((50, 50)), source((400, 400))))
    batches = trained(plan, range(plan.steps_in(0)), 1)
    assert sorted(sample for batch in batches for _, samples in batch for sample in samples) == list(range(900))
    assert 0.08 < drawn(plan, 10)[0] / drawn(plan, 10).sum() < 0.14


@pytest.mark.parametrize(("until", "passes"), [("first", (1, 1 / 3)), ("last", (3, 1))])
def test_a_weighted_mixture_repeats_small_sets_or_ends_with_the_first(until: str, passes: tuple[float, float]):
    sources = (source((100,), weight=1), source((150, 150), weight=1))
    plan = make_plan(count=400, sources=sources, mix_until=until)
    counts = drawn(plan, plan.steps_in(0))
    assert counts.tolist() == [round(100 * passes[0]), round(300 * passes[1])]
    assert plan.times_trained()[:100].tolist() == [round(passes[0])] * 100
    # The larger set goes on where the epoch before left it: three epochs see all of it, once each pass.
    batches = trained(plan, range(plan.steps_until(3)), 1)
    large = [sample for batch in batches for _, samples in batch for sample in samples if sample >= 100]
    assert np.bincount(large, minlength=400)[100:].tolist() == [round(3 * passes[1])] * 300


@pytest.mark.parametrize("by", ["samples", "tokens"])
def test_a_mixture_keeps_its_proportions(by: str):
    rng = np.random.default_rng(0)
    tokens = np.concatenate([rng.integers(200, 300, 1000), rng.integers(20, 500, 2000), np.full(500, 100)])
    tokens[-250:] = 1500  # half of the last set is too long
    sources = (source((500, 500), weight=0.5), source((2000,), weight=0.3), source((500,), weight=0.2))
    settings = {"mix_by": by, "window": 512, "global_batch_packs": 4}
    plan = make_plan(count=3500, lengths=lengths_of(tokens), sources=sources, **settings)
    sums = np.zeros(3)
    for step in range(1000):
        for pack in plan.batch(step).packs:
            samples = np.array(pack.samples)
            np.add.at(sums, plan.source_of(samples), 1 if by == "samples" else tokens[samples])
    assert np.abs(sums / sums.sum() - [0.5, 0.3, 0.2]).max() < 0.001


def test_weights_are_given_to_all_sets_or_to_none():
    with pytest.raises(PlanError, match="give every set of shards one above 0, or none"):
        make_plan(count=400, sources=(source((100,), weight=1), source((300,))))
