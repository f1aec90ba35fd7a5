"""What a training would do, without a GPU and without training: the figures of its plan, and its first pack as text."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from data.schema import UserError
from train.config_schema import Config
from train.material import Geometry, find_model, read_geometry
from train.mixture import names_of
from train.pipeline.batch import IGNORED, Batch
from train.pipeline.bound import fewest_packs
from train.pipeline.dealing import OPERATIONS_OF_WORK, balance, deal_packs
from train.pipeline.encode import EncoderSettings, Job, PackMaker
from train.pipeline.plan import Plan
from train.pipeline.rate import loader_rate
from train.pipeline.sharing import Alone
from train.planning import open_training
from train.stopping import last_step

GIB = 2**30
CROPS = (1, 4, 9, 16)
"""Settings of num_crops that are shown beside one another."""
STEPS_LOOKED_AT = 200
"""Of the first epoch, for what differs from step to step."""
RATE_S = 5.0
"""Seconds for which the loader is measured."""
GPU_TFLOPS = 400
"""What one GPU is taken to sustain, in 10¹² operations a second: two fifths of an H100's peak in bfloat16."""
PASSES = 4
"""Times the forward's operations that a step takes: forward, again for its recomputing, twice that backward."""


def open_dry(config: Config) -> Plan:
    """The plan of the training, made by this process alone; raises UserError where it would not start for its data."""
    folder = find_model(config.model.path, fetch=True)
    assert folder is not None
    return open_training(config, folder, read_geometry(folder, config.model.num_crops), Alone(), None)


def dry_run(config: Config) -> Iterator[str]:
    """The lines to print, as they become known. Raises UserError where training would not start for its data."""
    folder = find_model(config.model.path, fetch=True)
    assert folder is not None
    geometry = read_geometry(folder, config.model.num_crops)
    begun = time.perf_counter()
    plan = open_training(config, folder, geometry, Alone(), None)
    yield f"plan {plan.spec.fingerprint()[:12]} made in {time.perf_counter() - begun:.1f} s"
    yield from plan_lines(plan, config)
    yield from mixture_lines(plan)
    yield from reading_lines(plan)
    yield from crops_lines(config, folder, geometry)
    yield from balance_lines(plan)
    yield from rate_lines(plan, folder / "tokenizer.json", config.data.workers)
    yield "the first pack, what is learned in [brackets]:"
    yield from first_pack_lines(plan, folder / "tokenizer.json")


def best_fill(plan: Plan, packs: int) -> float:
    """The most of the packs' tokens that any packing of the first epoch's samples could use."""
    times, tokens = plan.times_trained(), plan.lengths.tokens
    counts = np.zeros(plan.spec.pack_length + 1, np.int64)
    np.add.at(counts, np.minimum(tokens, plan.spec.pack_length), times)
    fewest = fewest_packs(counts, plan.spec.pack_length, packs)
    return float((counts * np.arange(len(counts))).sum() / (fewest * plan.spec.pack_length))


def plan_lines(plan: Plan, config: Config) -> Iterator[str]:
    """Steps, packs, fill."""
    spec, figures = plan.spec, plan.figures()
    end = last_step(plan, config.stop)
    yield (
        f"an epoch: {figures.samples:,} samples in {figures.packs:,} packs of {spec.pack_length:,} tokens, "
        f"{figures.steps:,} steps of {spec.global_batch_packs} packs; the run: {end.steps:,} steps ({end.rule})"
    )
    yield f"fill {figures.fill:.2%}; the most that these lengths allow: {best_fill(plan, figures.packs):.2%}"
    if figures.over_long or figures.cut_down:
        yield (
            f"{figures.over_long:,} samples are too long and left out, {figures.cut_down:,} have their pictures cut "
            "into fewer crops"
        )


def mixture_lines(plan: Plan) -> Iterator[str]:
    """How often each of several sets is gone through in an epoch."""
    if len(plan.spec.sources) == 1:
        return
    for name, source, draws in zip(names_of(plan), plan.spec.sources, plan.draws, strict=True):
        weight = "" if source.weight is None else f", weight {source.weight:g}"
        passes = draws / source.samples
        yield f"  {name}: {draws:,} of {source.samples:,} samples an epoch ({passes:.2f} passes{weight})"


def reading_lines(plan: Plan) -> Iterator[str]:
    """What an epoch reads."""
    times, size, start = plan.times_trained(), 0, 0
    for one, index in zip(plan.corpus.sets, plan.corpus.indexes, strict=True):
        size += int(times[start : start + one.samples] @ index.length[: one.samples])
        start += one.samples
    pictures = sum(
        int(times[first : first + one.samples] @ index.picture_counts[: one.samples])
        for first, one, index in zip(plan.corpus.starts, plan.corpus.sets, plan.corpus.indexes, strict=False)
    )
    shards = len(plan.corpus.shard_paths)
    yield f"an epoch reads {size / GIB:.2f} GiB, {pictures:,} pictures, from {shards:,} shards"


def crops_lines(config: Config, folder: Path, geometry: Geometry) -> Iterator[str]:
    """Tokens and pictures of a step at several num_crops."""
    yield "num_crops   packs   steps    fill  tokens a step  samples a step  too long"
    for crops in sorted({*CROPS, geometry.num_crops}):
        # A model of its own kind of data may be too long at 16 crops: that is to be seen, not to end the table.
        data = config.data.model_copy(update={"over_long": "skip"}) if config.data.over_long == "error" else config.data
        other = config.model_copy(update={"data": data, "stop": config.stop.model_copy(update={"epochs": 1.0})})
        try:
            plan = open_training(other, folder, replace(geometry, num_crops=crops), Alone(), None)
        except UserError as error:
            yield f"{crops:9d}   {error}"
            continue
        found = plan.figures()
        mark = "*" if crops == geometry.num_crops else " "
        yield (
            f"{crops:8d}{mark} {found.packs:7,} {found.steps:7,} {found.fill:7.1%} {found.tokens / found.steps:14,.0f} "
            f"{found.samples / found.steps:15,.1f} {found.over_long:9,}"
        )


def balance_lines(plan: Plan) -> Iterator[str]:
    """How evenly ranks are loaded, beside packs dealt as they come."""
    steps = range(0, plan.steps_per_epoch, max(1, plan.steps_per_epoch // STEPS_LOOKED_AT))
    packs = plan.spec.global_batch_packs
    for world in sorted({ranks for ranks in (2, 8, 64) if packs % ranks == 0} | {packs} - {1}):
        batches = [plan.batch(step).packs for step in steps]
        full = [packs for packs in batches if len(packs) % world == 0] or batches[:1]
        dealt = [balance(deal_packs(packs, world)) for packs in full]
        as_they_come = [
            balance([packs[first : first + world] for first in range(0, len(packs) // world * world, world)]).waiting
            for packs in full
            if len(packs) >= world
        ]
        sums, waiting = (np.mean([getattr(one, name) for one in dealt]) for name in ("sums", "waiting"))
        yield (
            f"on {world} ranks: the most a rank carries of a step's work is {sums:.3f} of the mean, with waiting in "
            f"each micro-step {waiting:.3f} (dealt as they come {np.mean(as_they_come or [1]):.3f})"
        )


def rate_lines(plan: Plan, tokenizer_file: Path, workers: int) -> Iterator[str]:
    """The loader's rate on this machine, beside what a GPU would take of these packs."""
    rate = loader_rate(plan, tokenizer_file, workers=workers, seconds=RATE_S)
    yield (
        f"the loader makes {rate.packs_per_s:,.1f} packs a second here with {workers} workers: "
        f"{rate.samples_per_s:,.1f} samples, {rate.pictures_per_s:,.1f} pictures, {rate.tokens_per_s:,.0f} tokens"
    )
    packs = plan.batch(0).packs
    operations = PASSES * OPERATIONS_OF_WORK * sum(pack.work for pack in packs) / len(packs)
    needed = GPU_TFLOPS * 1e12 / operations
    yield (
        f"a GPU that sustains {GPU_TFLOPS} TFLOP/s takes {needed:,.1f} of these packs a second of the published "
        f"model: {math.ceil(needed * max(workers, 1) / rate.packs_per_s)} workers a GPU (data.workers)"
    )


def first_pack_lines(plan: Plan, tokenizer_file: Path) -> Iterator[str]:
    """The first pack, read and encoded as training would, decoded back sample by sample."""
    pack, spec = plan.batch(0).packs[0], plan.spec
    settings = EncoderSettings(
        sets=plan.corpus.sets,
        tokenizer_file=tokenizer_file,
        template=spec.template,
        num_crops=spec.num_crops,
        crop_size=spec.crop_size,
        tokens_per_side=spec.tokens_per_side,
        max_open=spec.block_shards,
    )
    samples = list(pack.samples)
    job = Job(
        step=0,
        number=0,
        samples=pack.samples,
        tokens=tuple(plan.lengths.tokens[samples].tolist()),
        num_crops=tuple(plan.lengths.num_crops[samples].tolist()),
        crop_chunks=1,
        label_chunks=1,
    )
    maker = PackMaker(settings)
    batch = maker.make(job).batch
    maker.close()
    yield from decoded(batch, Tokenizer.from_file(str(tokenizer_file)))


def decoded(batch: Batch, tokenizer: Tokenizer) -> Iterator[str]:
    """A pack as text, a line a sample: pictures as <k × tokens>, supervised stretches in brackets."""
    for place, key in enumerate(batch.keys):
        part = slice(int(batch.cu_seqlens[place]), int(batch.cu_seqlens[place + 1]))
        ids, labels = batch.input_ids[part].tolist(), batch.labels[part].tolist()
        text = ""
        for (picture, learned), group in groupby(
            zip(ids, labels, strict=True), lambda pair: (min(pair[0], 0), pair[1] != IGNORED)
        ):
            tokens = [token for token, _ in group]
            piece = f"<picture {-picture}: {len(tokens)} tokens>" if picture else tokenizer.decode(tokens, False)
            text += f"[{piece}]" if learned else piece
        yield f"  {key} ({len(ids)} tokens): {text!r}"
    for bad in batch.bad:
        yield f"  {bad.key} is damaged: {bad.reason}"
