"""What the pipeline hands to the engine: encoded samples laid out one after the other in a pack. NumPy only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One sample, ready to be packed."""

    key: str
    input_ids: NDArray[np.int64]
    """[T]; picture k is a run of −k."""
    labels: NDArray[np.int64]
    """[T]; −100 where nothing is supervised, the first token included."""
    crops: NDArray[np.uint8]
    """[K, 3, c, c], sub crops of all pictures, row by row; the global views are made on the device."""
    grids: NDArray[np.int64]
    """[N, 2], rows and columns of crops of each picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadSample:
    """A sample that was left out of its pack, and why."""

    key: str
    shard: str
    byte: int
    """Where the sample starts in the shard."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A pack as one row. labels[t] is the token at t (the model shifts); each segment's first label is −100, so that no
    segment is asked to predict the next one's first token."""

    input_ids: NDArray[np.int64]
    """[T]; a run of −k is picture k of its segment."""
    position_ids: NDArray[np.int64]
    """[T], from 0 in each segment."""
    labels: NDArray[np.int64]
    """[T]"""
    cu_seqlens: NDArray[np.int32]
    """[S + 1], ends of the segments, 0 first."""
    crops: NDArray[np.uint8]
    """[K, 3, c, c]"""
    grids: NDArray[np.int64]
    """[N, 2]"""
    keys: tuple[str, ...]
    """[S]; none in an empty pack, which is one token without a label."""
    crop_chunks: int
    label_chunks: int
    number: int
    """The pack's place in the global batch."""
    bad: tuple[BadSample, ...]

    ARRAYS = ("input_ids", "position_ids", "labels", "cu_seqlens", "crops", "grids")

    def arrays(self) -> dict[str, Any]:
        """The fields that are arrays, by name."""
        return {name: getattr(self, name) for name in self.ARRAYS}

    def plain(self) -> dict[str, Any]:
        """All other fields, by name."""
        return {
            "keys": self.keys,
            "crop_chunks": self.crop_chunks,
            "label_chunks": self.label_chunks,
            "number": self.number,
            "bad": self.bad,
        }


def assemble(
    samples: Sequence[Encoded],
    *,
    crop_size: int,
    crop_chunks: int,
    label_chunks: int,
    number: int,
    bad: Sequence[BadSample] = (),
) -> Batch:
    """Lay samples out as one pack; none makes an empty pack: one token 0 that nothing is learned from."""
    if not samples:
        ids, labels, lengths = [np.zeros(1, np.int64)], [np.full(1, IGNORED, np.int64)], [1]
    else:
        ids, labels = [s.input_ids for s in samples], [s.labels for s in samples]
        lengths = [len(s.input_ids) for s in samples]
    return Batch(
        input_ids=np.concatenate(ids),
        position_ids=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
        labels=np.concatenate(labels),
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        crops=np.concatenate([np.zeros((0, 3, crop_size, crop_size), np.uint8), *(s.crops for s in samples)]),
        grids=np.concatenate([np.zeros((0, 2), np.int64), *(s.grids for s in samples)]),
        keys=tuple(sample.key for sample in samples),
        crop_chunks=crop_chunks,
        label_chunks=label_chunks,
        number=number,
        bad=tuple(bad),
    )
