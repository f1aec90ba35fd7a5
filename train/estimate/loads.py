"""The fullest pack of a training: as planned, or as pictures of one size would fill it."""

import math

from train.config_schema import Config
from train.estimate.setup import PackLoad
from train.estimate.sizes import ModelSizes
from train.pipeline.plan import Plan

STEPS_LOOKED_AT = 200
QUESTION_TOKENS, ANSWER_TOKENS = 30, 40
"""Text of a sample where there is no plan to look at: a question and an answer of a catalogue."""


def planned_load(plan: Plan, sizes: ModelSizes) -> PackLoad:
    """The fullest pack of the first epoch: the most of everything, which need not be in one pack."""
    spec, every = plan.spec, max(1, plan.steps_per_epoch // STEPS_LOOKED_AT)
    packs = [pack for step in range(0, plan.steps_per_epoch, every) for pack in plan.batch(step).packs]
    crops = max(pack.crops for pack in packs)
    labels = max(pack.labels for pack in packs)
    samples = max(len(pack.samples) for pack in packs)
    tokens = max(pack.tokens for pack in packs)
    longest = max(int(plan.lengths.tokens[list(pack.samples)].max()) for pack in packs)
    return PackLoad(
        tokens=tokens,
        labels=labels,
        crops=crops,
        pictures=min(samples, crops),
        image_tokens=min(tokens, crops * sizes.side * (sizes.side + 1) + samples),
        crop_chunks=math.ceil(crops / spec.crops_per_chunk),
        label_chunks=max(1, math.ceil(labels / spec.labels_per_chunk)),
        longest=longest,
        samples=samples,
    )


def usual_load(config: Config, sizes: ModelSizes, num_crops: int) -> PackLoad:
    """A pack full of samples of one square picture each, cut into as many crops as are allowed."""
    side = math.isqrt(num_crops)
    rows, columns = side, num_crops // side
    image = sizes.image_tokens(rows, columns)
    length = image + QUESTION_TOKENS + ANSWER_TOKENS
    samples = max(1, config.data.pack_length // length)
    crops = samples * (rows * columns + (rows * columns > 1))
    labels = samples * ANSWER_TOKENS
    return PackLoad(
        tokens=max(config.data.pack_length, length),
        labels=labels,
        crops=crops,
        pictures=samples,
        image_tokens=samples * image,
        crop_chunks=math.ceil(crops / config.model.crops_per_chunk),
        label_chunks=max(1, math.ceil(labels / config.model.labels_per_chunk)),
        longest=length,
        samples=samples,
    )
