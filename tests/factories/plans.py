"""Settings of plans, for tests and benchmarks that open one."""

from dataclasses import replace
from typing import Any

from train.pipeline.spec import PlanSettings

# For the shards and the crops of tests/factories/small_shards.py.
SMALL = PlanSettings(
    num_crops=4,
    crop_size=56,
    tokens_per_side=2,
    pack_length=256,
    window=64,
    over_long="skip",
    last_batch="short",
    shuffle=True,
    seed=0,
    global_batch_packs=5,
    crops_per_chunk=8,
    labels_per_chunk=64,
)
# The published model's crops, in packs of the default configuration's length.
PUBLISHED = replace(
    SMALL,
    crop_size=336,
    tokens_per_side=12,
    pack_length=4096,
    window=4096,
    global_batch_packs=64,
    crops_per_chunk=16,
    labels_per_chunk=1024,
)


def small(**changes: Any) -> PlanSettings:
    """SMALL with some fields changed."""
    return replace(SMALL, **changes)


def published(**changes: Any) -> PlanSettings:
    """PUBLISHED with some fields changed."""
    return replace(PUBLISHED, **changes)
