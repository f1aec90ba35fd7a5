"""The loader's rate, measured for a dry run."""

from pathlib import Path

from tests.factories.small_shards import small_shards
from tests.unit.test_loader import opened
from train.pipeline.rate import loader_rate


def test_the_rate_counts_what_was_made_after_the_first_pack(tmp_path: Path):
    built = small_shards(tmp_path)
    plan = opened(built)
    rate = loader_rate(plan, built.tokenizer, workers=0, packs=3)
    packs = [plan.deal(step, 0, plan.spec.global_batch_packs)[0].pack for step in range(1, 4)]
    assert rate.packs == sum(bool(pack.samples) for pack in packs)
    assert rate.samples == sum(len(pack.samples) for pack in packs)
    assert rate.tokens == sum(pack.tokens for pack in packs)
    assert rate.seconds > 0
    assert rate.samples_per_s == rate.samples / rate.seconds


def test_an_epoch_of_one_pack_has_a_rate_too(tmp_path: Path):
    built = small_shards(tmp_path, per_shard=1)
    plan = opened(built)
    assert plan.steps_in(0) == 1
    rate = loader_rate(plan, built.tokenizer, workers=0)
    assert rate.samples > 0
    assert rate.pictures_per_s >= 0
