"""What a person wants to know of a folder of shards: counts, sizes, values, samples, and what was not taken."""

import base64
import io
import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.chat import picture_values
from data.images import PictureError, open_picture
from data.index import Index
from data.ledger import Ledger, LedgerError, Record
from data.manifest import Manifest
from data.mapping_file import make_mapping
from data.originals import PictureChanged, bytes_of
from data.rules import MappingError
from data.schema import Sample
from data.shards import read_sample
from data.volumes import Reader

LOOK = 2000  # samples of a split that are read for their values
COMMON = 12  # values of a category that are listed
EXAMPLES = 6  # rejected rows of a reason
_SIDE = 160  # of a thumbnail, pixels
QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True, slots=True)
class Shown:
    """A sample, or a rejected row, as it is shown."""

    key: str
    heading: str
    messages: tuple[dict[str, str], ...]
    pictures: tuple[str, ...]
    """data: URLs of thumbnails."""
    links: tuple[str, ...] = ()
    """Where the pictures were to come from."""


@dataclass(slots=True)
class SplitFacts:
    """A split."""

    name: str
    samples: int
    groups: int
    pictures: int
    shards: int
    bytes: int
    widths: list[float]
    """5 %, 50 % and 95 % of the pictures' widths; empty without pictures."""
    heights: list[float]
    text_tokens: list[float]
    """The same of the samples' tokens beside image tokens; empty if they were not counted."""
    label_tokens: list[float]
    text_bytes: int
    looked: int = 0
    """Samples whose values were read."""
    categories: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """Field → its commonest values."""
    numbers: dict[str, list[float]] = field(default_factory=dict)
    """Field → its 5 %, 50 % and 95 %."""
    shown: list[Shown] = field(default_factory=list)


def split_facts(folder: Path, split: str, manifest: Manifest, samples: int, thumbnails: bool) -> SplitFacts:
    """All about a split; of its values a spread of LOOK samples is read, of which `samples` are shown.

    Raises IndexFileError, ShardError.
    """
    index = Index.open(folder / split / "index.arrow")
    sizes, counts = index.picture_sizes, manifest.counts[split]
    facts = SplitFacts(
        name=split,
        samples=counts["samples"],
        groups=index.groups,
        pictures=counts["pictures"],
        shards=len(manifest.shards[split]),
        bytes=counts["bytes"],
        widths=_quantiles(sizes[:, 0]),
        heights=_quantiles(sizes[:, 1]),
        text_tokens=_quantiles(index.text_tokens[index.text_tokens >= 0]),
        label_tokens=_quantiles(index.label_tokens[index.label_tokens >= 0]),
        text_bytes=int(index.text_bytes.sum(dtype=np.int64)),
    )
    paths = [folder / split / shard["name"] for shard in manifest.shards[split]]
    places = sorted({int(place) for place in np.linspace(0, len(index) - 1, min(LOOK, len(index)))})
    first = set(range(min(samples, len(index))))
    counted: dict[str, Counter[str]] = {}
    numbers: dict[str, list[float]] = {}
    for place in sorted(first | set(places)):
        entry = index.entry(place)
        sample, pictures = read_sample(paths[entry.shard], entry)
        facts.looked += 1
        for name, kind in manifest.fields.items():
            value = sample.target.get(name)
            if kind == "category":
                counted.setdefault(name, Counter())[str(value)] += 1
            elif kind == "number" and isinstance(value, int | float):
                numbers.setdefault(name, []).append(float(value))
        if place in first:
            shown = tuple(thumbnail(data) for data in pictures) if thumbnails else ()
            facts.shown.append(_shown(sample, entry.image_sizes, shown))
    facts.categories = {name: counter.most_common(COMMON) for name, counter in counted.items()}
    facts.numbers = {name: _quantiles(np.array(values)) for name, values in numbers.items()}
    return facts


def _shown(sample: Sample, sizes: tuple[tuple[int, int], ...], pictures: tuple[str, ...]) -> Shown:
    heading = ", ".join(f"{width}×{height}" for width, height in sizes)
    return Shown(sample.key, heading, sample.messages, pictures)


def _quantiles(values: NDArray[Any]) -> list[float]:
    return [float(one) for one in np.quantile(values, QUANTILES)] if len(values) else []


def thumbnail(data: bytes) -> str:
    """A small copy of a picture as a data: URL; empty if it is none."""
    try:
        picture = open_picture(data).convert("RGB")
    except PictureError:
        return ""
    picture.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def rejected_rows(folder: Path, manifest: Manifest, thumbnails: bool) -> dict[str, list[Shown]]:
    """Reason → examples of rows that are in no shard, with the pictures and URLs that the ledger still has of them."""
    examples: dict[str, list[Shown]] = {
        reason: [] for reason, _ in sorted(manifest.rejected.items(), key=lambda one: -one[1])
    }
    path = folder / "rejected.jsonl"
    if not path.is_file():
        return examples
    known = _Known(folder, manifest)
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            listed = examples.setdefault(record["reason"], [])
            if len(listed) < EXAMPLES:
                links, pictures = known.of(record["row"], thumbnails)
                heading = f"row {record['row']}: {record['detail'][:500]}"
                listed.append(Shown(record["key"] or "", heading, (), pictures, links))
    return examples


class _Known:
    """What the ledger beside the shards knows of a row; nothing where there is no ledger any more."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._ledger = Ledger(folder / "downloads")
        try:
            mapping = make_mapping(manifest.build["mapping"], str(folder / "manifest.json"))
            self._columns, self._chat = mapping.pictures, mapping.chat
        except (MappingError, KeyError):
            self._columns, self._chat = [], None

    def of(self, row: int, thumbnails: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
        try:
            record: Record = next(self._ledger.take([row]))
        except (LedgerError, IndexError, StopIteration):
            return (), ()
        named = picture_values(record.values, self._columns, self._chat)
        links = tuple(one for one in named if isinstance(one, str) and one.startswith(("http://", "https://")))
        pictures = []
        with Reader() as volumes:
            for found in record.pictures if thumbnails else ():
                with suppress(PictureChanged):
                    pictures.append(thumbnail(bytes_of(self._ledger.downloads, found, volumes)))
        return links, tuple(pictures)
