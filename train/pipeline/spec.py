"""The settings that decide what is trained at which step, as plain values with a fingerprint."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from data.schema import UserError

OVER_LONG = ("skip", "error", "fewer_crops")
LAST_BATCH = ("drop", "wrap", "short")
MIX_BY = ("samples", "tokens")
MIX_UNTIL = ("first", "last")
VERSION = 2
_COUNTS = ("pack_length", "window", "global_batch_packs", "crops_per_chunk", "labels_per_chunk", "block_shards")


class PlanError(UserError):
    """The settings and the data do not make a plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRef:
    """One shard as the plan pins it."""

    name: str
    sha256: str
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A set of shards that the plan draws from."""

    split: str
    shards: tuple[ShardRef, ...]
    """In the order of the index."""
    weight: float | None = None
    """Its share of what is trained, in any unit; None for all sources: each sample once an epoch."""

    @property
    def samples(self) -> int:
        """In all its shards."""
        return sum(shard.samples for shard in self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What a person chooses of a plan; the shards and the tokenizer add the rest."""

    num_crops: int
    crop_size: int
    """Pixels a side."""
    tokens_per_side: int
    """Image tokens on a side of one crop."""
    pack_length: int
    """Tokens a pack takes."""
    window: int
    """Samples packed together, about; an epoch is cut evenly."""
    over_long: str
    """What becomes of a sample longer than a pack: skip | error | fewer_crops (as many as fit)."""
    last_batch: str
    """Packs that do not fill a batch at an epoch's end: drop | wrap (completed by the epoch's first) | short."""
    shuffle: bool
    seed: int
    global_batch_packs: int
    crops_per_chunk: int
    """Crops that pass the vision tower in one call."""
    labels_per_chunk: int
    """Supervised tokens that pass the output head in one call."""
    mix_by: str = "samples"
    """What weights are shares of: samples | tokens."""
    mix_until: str = "last"
    """When an epoch of a weighted mixture ends: first (a source is used up) | last (all are; small ones repeat)."""
    block_shards: int = 64
    """Shards that the shuffle mixes with one another, and that a reader may have open."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise PlanError(f"{name} is {getattr(self, name)}; it must be at least 1")
        choices = {"over_long": OVER_LONG, "last_batch": LAST_BATCH, "mix_by": MIX_BY, "mix_until": MIX_UNTIL}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise PlanError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if self.seed < 0:
            raise PlanError(f"seed is {self.seed}; it must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSpec(PlanSettings):
    """All that decides what is trained at which step; plain values, so that it can be written as JSON."""

    sources: tuple[Source, ...]
    tokenizer_hash: str
    """SHA-256 of tokenizer.json."""
    template: str
    """The chat template, Jinja."""
    version: int = VERSION
    """Of the arithmetic: the same spec of another version may plan other packs."""

    def __post_init__(self) -> None:
        PlanSettings.__post_init__(self)  # super() does not find its way in a class with slots
        weights = [source.weight for source in self.sources]
        if any(weight is not None for weight in weights) and not all(weight and weight > 0 for weight in weights):
            raise PlanError(f"weights are {weights}; give every set of shards one above 0, or none of them")

    @classmethod
    def of(
        cls, settings: PlanSettings, *, sources: tuple[Source, ...], tokenizer_hash: str, template: str
    ) -> "PlanSpec":
        """The settings, or another spec's, with these shards and this tokenizer."""
        chosen = {field.name: getattr(settings, field.name) for field in fields(PlanSettings)}
        return cls(sources=sources, tokenizer_hash=tokenizer_hash, template=template, **chosen)

    @property
    def weighted(self) -> bool:
        """Whether the sources are drawn from by weights, and not each sample once."""
        return self.sources[0].weight is not None

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dump."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PlanSpec":
        """The spec that `to_json` wrote."""
        sources = tuple(
            Source(**(source | {"shards": tuple(ShardRef(**shard) for shard in source["shards"])}))
            for source in values["sources"]
        )
        return cls(**(values | {"sources": sources}))

    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, hex: equal if and only if the plan is."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
