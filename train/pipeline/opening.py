"""From folders of shards and settings to a plan: what training, evaluation and tools start with."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data.manifest import Manifest, file_sha256
from data.schema import UserError
from train.pipeline.corpus import Corpus, ShardSet
from train.pipeline.lengths import Geometry, counted_text, sample_lengths
from train.pipeline.order import Counts
from train.pipeline.plan import Plan
from train.pipeline.sharing import Alone, Ranks
from train.pipeline.spec import VERSION, PlanError, PlanSettings, PlanSpec, ShardRef, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder of shards to train on."""

    path: Path
    """With manifest.json."""
    weight: float | None = None
    """As in the plan's sources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A split as it lies in a folder."""

    source: Source
    shards: ShardSet
    template: str
    tokenizer_hash: str | None


def open_plan(
    shards: Path | Sequence[Folder],
    split: str,
    settings: PlanSettings,
    *,
    tokenizer_file: Path,
    cache: Path | None,
    pinned: Sequence[Sequence[ShardRef]] | None = None,
    ranks: Ranks | None = None,
) -> Plan:
    """Check the shards of a split against the manifest, count what is not counted yet, and plan.

    Args:
        shards: folder with manifest.json, or several that are mixed.
        split: a folder in it, in each of them.
        settings: how it is planned.
        tokenizer_file: tokenizer.json.
        cache: folder where counts of text, lengths and packs are kept for the next start; None keeps none.
        pinned: the shards of each folder that an earlier plan began with; others that were appended are left alone.
        ranks: who shares the counting; each calls this alike. None: this process alone.
    Raises:
        UserError: no shards, another format version, a shard missing, changed or not of its size, folders with
            different templates, settings that make no plan.
    """
    ranks = ranks or Alone()
    folders = [Folder(path=shards)] if isinstance(shards, Path) else list(shards)
    found = ranks.agree(lambda: _find(folders, split, pinned))
    tokenizer_hash = ranks.agree(lambda: _sha256(tokenizer_file))
    corpus = Corpus.open([one.shards for one in found])

    def text_of(number: int) -> Counts:
        one, index = found[number], corpus.indexes[number]
        known = index.known_tokens(one.shards.samples) if one.tokenizer_hash == tokenizer_hash else None
        if known is not None:
            return known
        return counted_text(
            one.shards,
            index,
            [ref.sha256 for ref in one.source.shards],
            tokenizer_file=tokenizer_file,
            tokenizer_hash=tokenizer_hash,
            template=one.template,
            cache=cache,
            ranks=ranks,
        )

    spec = PlanSpec.of(
        settings,
        sources=tuple(one.source for one in found),
        tokenizer_hash=tokenizer_hash,
        template=found[0].template,
    )
    lengths = sample_lengths(
        corpus.indexes,
        text_of,
        [one.shards.samples for one in found],
        Geometry(
            num_crops=spec.num_crops,
            crop_size=spec.crop_size,
            tokens_per_side=spec.tokens_per_side,
            fit_into=spec.pack_length if spec.over_long == "fewer_crops" else None,
        ),
        about=_digest([asdict(source)["shards"] for source in spec.sources], tokenizer_hash, spec.template),
        cache=cache,
        ranks=ranks,
    )
    plan = ranks.agree(lambda: Plan(spec, corpus, lengths, cache))
    plan.prepare(ranks)
    return plan


def _find(folders: Sequence[Folder], split: str, pinned: Sequence[Sequence[ShardRef]] | None) -> list[_Found]:
    """The split in each folder, checked; all of one template."""
    if pinned is not None and len(pinned) != len(folders):
        raise PlanError(f"the run was started with {len(pinned)} folders of shards, now there are {len(folders)}")
    found = []
    for place, folder in enumerate(folders):
        manifest = Manifest.load(folder.path)
        listed = manifest.shards.get(split, [])
        refs = tuple(ShardRef(name=one["name"], sha256=one["sha256"], samples=one["samples"]) for one in listed)
        if pinned is not None:
            check_pinned(folder.path / split, tuple(pinned[place]), refs)
            refs, listed = tuple(pinned[place]), listed[: len(pinned[place])]
            manifest = replace(manifest, shards=manifest.shards | {split: listed})
        manifest.check_shards(folder.path, split)
        samples = sum(ref.samples for ref in refs)
        if not samples:
            raise UserError(
                f"{folder.path / split} holds no sample; choose another split or build shards from more rows"
            )
        found.append(
            _Found(
                source=Source(split=split, shards=refs, weight=folder.weight),
                shards=ShardSet(
                    folder=folder.path / split, shard_names=tuple(ref.name for ref in refs), samples=samples
                ),
                template=manifest.chat_template["template"],
                tokenizer_hash=manifest.tokenizer_hash,
            )
        )
        entries = len(Corpus.open([found[-1].shards]).indexes[0])
        if samples > entries or (pinned is None and samples < entries):
            raise UserError(
                f"{folder.path / split}/index.arrow lists {entries} samples, the manifest {samples}; "
                "build the shards again"
            )
        if found[-1].template != found[0].template:
            raise PlanError(
                f"{folders[0].path} and {folder.path} have different chat templates, and one run trains one; "
                "build both with the same chat_template"
            )
    return found


def check_pinned(folder: Path, pinned: Sequence[ShardRef], now: Sequence[ShardRef]) -> None:
    """Raise PlanError where the shards that a run is pinned to are not the first of those there are now."""
    for place, ref in enumerate(pinned):
        there = now[place] if place < len(now) else None
        if there == ref:
            continue
        if there is None or there.name != ref.name:
            what = f"is not shard {place} of {len(now)} any more"
        elif there.samples != ref.samples:
            what = f"had {ref.samples} samples, now {there.samples}"
        else:
            what = f"was changed (SHA-256 {ref.sha256[:12]}…, now {there.sha256[:12]}…)"
        raise PlanError(
            f"{folder / ref.name}: this run is pinned to {len(pinned)} shards, and this one {what}; bring the "
            "shards back as they were (appended ones do no harm), or start another run by --run NAME"
        )


def record_of(plan: Plan, tokenizer_file: Path, cache: Path | None) -> dict[str, Any]:
    """What it takes to make the plan again, as plain values: the spec and where its shards lie."""
    return {
        "fingerprint": plan.spec.fingerprint(),
        "spec": plan.spec.to_json(),
        "folders": [str(one.folder.parent.resolve()) for one in plan.corpus.sets],
        "tokenizer": str(tokenizer_file.resolve()),
        "cache": str(cache.resolve()) if cache else None,
    }


def spec_of(record: Mapping[str, Any], where: Path) -> PlanSpec:
    """The spec in a record; raises PlanError where another version of the arithmetic wrote it."""
    version = record.get("spec", record).get("version")
    if version != VERSION:
        raise PlanError(
            f"{where}: a plan of version {version}, this program makes {VERSION}; "
            "go on with the program's version that wrote it, or start another run by --run NAME"
        )
    return PlanSpec.from_json(record["spec"])


def open_again(record: Mapping[str, Any], where: Path) -> Plan:
    """The plan that a record is of; raises PlanError where its shards or its tokenizer are others now."""
    spec = spec_of(record, where)
    plan = open_plan(
        [Folder(path=Path(p), weight=s.weight) for p, s in zip(record["folders"], spec.sources, strict=True)],
        spec.sources[0].split,
        spec,
        tokenizer_file=Path(record["tokenizer"]),
        cache=Path(record["cache"]) if record["cache"] else None,
        pinned=[source.shards for source in spec.sources],
    )
    if plan.spec != spec:
        raise PlanError(f"{where}: {', '.join(differing(spec, plan.spec))} changed since; bring back what was there")
    return plan


def differing(old: PlanSpec, new: PlanSpec) -> list[str]:
    """Names of the fields in which two specs differ."""
    return [name for name in PlanSpec.__dataclass_fields__ if getattr(old, name) != getattr(new, name)]


def _digest(*about: object) -> str:
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _sha256(file: Path) -> str:
    try:
        return file_sha256(file)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; name a model folder that has a tokenizer.json") from error
