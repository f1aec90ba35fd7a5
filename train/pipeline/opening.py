"""From a folder of shards and settings to a plan: what training, evaluation and tools start with."""

import hashlib
from pathlib import Path

from data.manifest import Manifest
from data.schema import UserError
from train.pipeline.corpus import Corpus, ShardSet
from train.pipeline.lengths import counted_text, sample_lengths
from train.pipeline.plan import Plan
from train.pipeline.spec import PlanSpec, ShardRef


def open_plan(
    shards: Path,
    split: str,
    *,
    tokenizer_file: Path,
    num_crops: int,
    crop_size: int,
    tokens_per_side: int,
    pack_length: int,
    window: int,
    over_long: str,
    last_batch: str,
    shuffle: bool,
    seed: int,
    global_batch_packs: int,
    crops_per_chunk: int,
    labels_per_chunk: int,
    cache: Path | None,
) -> Plan:
    """Check the shards of a split against the manifest, count what is not counted yet, and plan.

    Args:
        shards: folder with manifest.json.
        split: a folder in it.
        tokenizer_file: tokenizer.json.
        cache: folder where counts of text are kept for the next start and for other ranks; None keeps none.
        The others: as in PlanSpec.
    Raises:
        UserError: no shards, another format version, a shard missing or not of its size, settings that make no plan.
    """
    manifest = Manifest.load(shards)
    manifest.check_shards(shards, split)
    folder = shards / split
    refs = tuple(ShardRef(name=s["name"], sha256=s["sha256"], samples=s["samples"]) for s in manifest.shards[split])
    samples = sum(ref.samples for ref in refs)
    corpus = Corpus.open([ShardSet(folder=folder, shard_names=tuple(ref.name for ref in refs), samples=samples)])
    (index,) = corpus.indexes
    if samples != len(index):
        raise UserError(
            f"{folder}/index.arrow lists {len(index)} samples, the manifest {samples}; build the shards again"
        )
    if not len(index):
        raise UserError(f"{folder} holds no sample; choose another split or build shards from more rows")
    tokenizer_hash = _sha256(tokenizer_file)
    template = manifest.chat_template["template"]
    text, labels = index.text_tokens, index.label_tokens
    if manifest.tokenizer_hash != tokenizer_hash or min(text.min(), labels.min()) < 0:
        text, labels = counted_text(
            folder,
            index,
            [(ref.name, ref.sha256) for ref in refs],
            tokenizer_file=tokenizer_file,
            tokenizer_hash=tokenizer_hash,
            template=template,
            cache=cache,
        )
    spec = PlanSpec(
        split=split,
        shards=refs,
        tokenizer_hash=tokenizer_hash,
        template=template,
        num_crops=num_crops,
        crop_size=crop_size,
        tokens_per_side=tokens_per_side,
        pack_length=pack_length,
        window=window,
        over_long=over_long,
        last_batch=last_batch,
        shuffle=shuffle,
        seed=seed,
        global_batch_packs=global_batch_packs,
        crops_per_chunk=crops_per_chunk,
        labels_per_chunk=labels_per_chunk,
    )
    geometry = {"num_crops": num_crops, "crop_size": crop_size, "tokens_per_side": tokens_per_side}
    return Plan(spec, corpus, sample_lengths(index, text, labels, **geometry))


def _sha256(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; name a model folder that has a tokenizer.json") from error
