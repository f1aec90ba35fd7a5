"""The samples of one or several sets of shards as one list: which shard holds sample n, and where."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data.index import Index, IndexEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSet:
    """A split's shards as they lie somewhere; small enough to send to a worker."""

    folder: Path
    """The split's: index.arrow and the shards are in it."""
    shard_names: tuple[str, ...]
    """In the order of the index, which may list more after them."""
    samples: int
    """In these shards."""


class Corpus:
    """Samples by one number over all sets, and shards likewise: those of the first set, then of the second, …"""

    def __init__(self, sets: Sequence[ShardSet], indexes: Sequence[Index]) -> None:
        """
        Args:
            sets: at least one.
            indexes: of each set's folder.
        """
        self.sets = tuple(sets)
        self.indexes = tuple(indexes)
        self.shard_paths = tuple(one.folder / name for one in sets for name in one.shard_names)
        """Of every shard, by its number over all sets."""
        self.starts = [0]
        """Number of each set's first sample, and the number of all."""
        self._first_shards = [0]
        for one in sets:
            self.starts.append(self.starts[-1] + one.samples)
            self._first_shards.append(self._first_shards[-1] + len(one.shard_names))

    @classmethod
    def open(cls, sets: Sequence[ShardSet]) -> "Corpus":
        """Map each set's index; raises IndexFileError where one is not there or not an index."""
        return cls(sets, [Index.open(one.folder / "index.arrow") for one in sets])

    def __len__(self) -> int:
        return self.starts[-1]

    def locate(self, number: int) -> tuple[int, int]:
        """The set that holds a sample, and the sample's number in that set's index."""
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        place = bisect_right(self.starts, number) - 1
        return place, number - self.starts[place]

    def key(self, number: int) -> str:
        """The key of a sample."""
        place, within = self.locate(number)
        return self.indexes[place].key(within)

    def entry(self, number: int) -> IndexEntry:
        """All about one sample; its shard is numbered over all sets."""
        place, within = self.locate(number)
        entry = self.indexes[place].entry(within)
        return replace(entry, shard=entry.shard + self._first_shards[place]) if place else entry
