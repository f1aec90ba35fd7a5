"""What an epoch takes from each set of shards, and whether its samples make packs at all."""

from collections.abc import Callable

import numpy as np

from train.pipeline.order import Counts, Ints
from train.pipeline.spec import PlanError, PlanSpec


def check_lengths(spec: PlanSpec, tokens: Counts, over_long: Ints, key: Callable[[int], str]) -> None:
    """Raise PlanError where no sample fits into a pack, or one does not and `over_long` is "error".

    Args:
        spec: the settings.
        tokens: int32 [samples], of each sample.
        over_long: samples that no pack takes.
        key: of a sample, by its number.
    """
    longest = int(tokens.max(initial=0))
    names = ", ".join(sorted({source.split for source in spec.sources}))
    if len(over_long) and spec.over_long == "error":
        raise PlanError(
            f"{names}: {len(over_long)} of {len(tokens)} samples are longer than pack_length "
            f"{spec.pack_length}, first {key(int(over_long[0]))!r}, longest {longest} tokens; raise "
            "pack_length or lower num_crops, or set over_long: skip to train without them, or fewer_crops to cut "
            "their pictures into fewer crops"
        )
    if len(over_long) == len(tokens):
        raise PlanError(
            f"{names}: none of its {len(tokens)} samples fits into a pack of {spec.pack_length} tokens "
            f"(shortest {int(tokens.min(initial=longest))}); raise pack_length or lower num_crops"
        )


def draws_per_epoch(spec: PlanSpec, tokens: Counts) -> list[int]:
    """Samples that an epoch takes from each source, those too long included; as many as it has without weights.

    Args:
        spec: the settings.
        tokens: int32 [samples], of each sample, source by source.
    Raises:
        PlanError: a source has no sample that fits into a pack.
    """
    if not spec.weighted:
        return [source.samples for source in spec.sources]
    rates, stop = [], 0
    for source in spec.sources:
        start, stop = stop, stop + source.samples
        own = tokens[start:stop]
        packed = own[own <= spec.pack_length]
        given = len(packed) if spec.mix_by == "samples" else int(packed.sum(dtype=np.int64))
        if not given:
            raise PlanError(
                f"a set of shards of split {source.split} has no sample that fits into a pack; leave it out"
            )
        assert source.weight is not None
        rates.append(source.weight * source.samples / given)
    passes = [source.samples / rate for source, rate in zip(spec.sources, rates, strict=True)]
    scale = min(passes) if spec.mix_until == "first" else max(passes)
    return [max(1, round(rate * scale)) for rate in rates]
