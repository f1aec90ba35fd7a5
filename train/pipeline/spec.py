"""The settings that decide what is trained at which step, as plain values with a fingerprint."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from data.schema import UserError

OVER_LONG = ("skip", "error")
LAST_BATCH = ("drop", "wrap", "short")
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
class PlanSpec:
    """All that decides what is trained at which step; plain values, so that it can be written as JSON."""

    split: str
    shards: tuple[ShardRef, ...]
    """In the order of the index."""
    tokenizer_hash: str
    """SHA-256 of tokenizer.json."""
    template: str
    """The chat template, Jinja."""
    num_crops: int
    crop_size: int
    """Pixels a side."""
    tokens_per_side: int
    """Image tokens on a side of one crop."""
    pack_length: int
    """Tokens a pack takes."""
    window: int
    """Samples packed together."""
    over_long: str
    """What becomes of a sample longer than a pack: skip | error."""
    last_batch: str
    """Packs that do not fill a batch at an epoch's end: drop | wrap (completed by the epoch's first) | short."""
    shuffle: bool
    seed: int
    global_batch_packs: int
    crops_per_chunk: int
    """Crops that pass the vision tower in one call."""
    labels_per_chunk: int
    """Supervised tokens that pass the output head in one call."""
    block_shards: int = 64
    """Shards that the shuffle mixes with one another, and that a reader may have open."""
    version: int = 1
    """Of the arithmetic: the same spec of another version may plan other packs."""

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise PlanError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, allowed in (("over_long", OVER_LONG), ("last_batch", LAST_BATCH)):
            if getattr(self, name) not in allowed:
                raise PlanError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        if self.seed < 0:
            raise PlanError(f"seed is {self.seed}; it must not be negative")

    def to_json(self) -> dict[str, Any]:
        """Plain values for json.dump."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "PlanSpec":
        """The spec that `to_json` wrote."""
        return cls(**(values | {"shards": tuple(ShardRef(**shard) for shard in values["shards"])}))

    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, hex: equal if and only if the plan is."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
