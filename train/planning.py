"""From a run's settings to the plans of its splits. No torch: a dry run needs none."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from train.config_schema import Config
from train.material import Geometry, cache_folder, shard_folders
from train.pipeline.opening import Folder, open_plan, spec_of
from train.pipeline.plan import Plan
from train.pipeline.sharing import Ranks
from train.pipeline.spec import PlanSettings, PlanSpec, ShardRef


def open_training(config: Config, model: Path, geometry: Geometry, ranks: Ranks, pinned: PlanSpec | None) -> Plan:
    """The plan of the training, with the packs of all its epochs counted; every rank calls it alike.

    pinned: what the run was started with, where it goes on; shards appended since are left alone.
    """
    folders = ranks.agree(lambda: shard_folders(config, config.data.train))
    shards = [source.shards for source in pinned.sources] if pinned else None
    plan = open_split(config, folders, config.data.train, model, geometry, ranks, shuffle=True, pinned=shards)
    stop = config.stop
    epochs, steps = math.ceil(stop.epochs) if stop.epochs is not None else sys.maxsize, stop.steps
    if stop.tokens is not None:
        an_epoch = max(1, int(plan.lengths.tokens @ plan.times_trained().astype(np.int64)))
        epochs, steps = min(epochs, -(-stop.tokens // an_epoch) + 1), steps or sys.maxsize
    plan.prepare(ranks, epochs=epochs, steps=steps)
    return plan


def open_split(
    config: Config,
    folders: Sequence[Folder],
    split: str,
    model: Path,
    geometry: Geometry,
    ranks: Ranks,
    *,
    shuffle: bool,
    pinned: Sequence[Sequence[ShardRef]] | None = None,
) -> Plan:
    """The plan of a split; lengths not known yet are counted by all ranks together."""
    settings = PlanSettings(
        num_crops=geometry.num_crops,
        crop_size=geometry.crop_size,
        tokens_per_side=geometry.tokens_per_side,
        pack_length=config.data.pack_length,
        window=config.data.window,
        over_long=config.data.over_long,
        last_batch=config.data.last_batch if shuffle else "short",
        shuffle=shuffle,
        seed=config.run.seed,
        global_batch_packs=config.batch.global_batch_packs,
        crops_per_chunk=config.model.crops_per_chunk,
        labels_per_chunk=config.model.labels_per_chunk,
        mix_by=config.data.mix_by,
        mix_until=config.data.mix_until,
    )
    tokenizer = model / "tokenizer.json"
    cache = cache_folder(config)
    return open_plan(folders, split, settings, tokenizer_file=tokenizer, cache=cache, pinned=pinned, ranks=ranks)


def pinned_plan(run: Path, start: Path | None) -> PlanSpec | None:
    """The plan that a run which goes on from a checkpoint was started with; raises PlanError for another version's."""
    file = run / "plan.json"
    return spec_of(json.loads(file.read_text()), file) if start and file.is_file() else None


def describe_over_long(plan: Plan) -> bytes:
    """A line of JSON for each sample that is too long for a pack as it is: key, tokens, what becomes of it."""
    lengths = plan.lengths
    lines = []
    for sample in np.flatnonzero((lengths.num_crops < plan.spec.num_crops) | (lengths.tokens > plan.spec.pack_length)):
        skipped = lengths.tokens[sample] > plan.spec.pack_length
        line = {
            "key": plan.key(int(sample)),
            "tokens": int(lengths.tokens[sample]),
            "rule": "skip" if skipped else "fewer_crops",
            "num_crops": int(lengths.num_crops[sample]),
        }
        lines.append(json.dumps(line) + "\n")
    return "".join(lines).encode()
