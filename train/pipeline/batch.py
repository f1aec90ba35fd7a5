"""What the pipeline hands to the engine: encoded samples laid out one after the other in a pack. NumPy only."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
    """[K, 3, c, c], sub crops of all pictures, row by row. Global views are made on the device."""
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
    """[K, c, c, 4], as of Encoded."""
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
        """All other fields, by name, as values that JSON has."""
        return {
            "keys": list(self.keys),
            "crop_chunks": self.crop_chunks,
            "label_chunks": self.label_chunks,
            "number": self.number,
            "bad": [asdict(one) for one in self.bad],
        }

    @classmethod
    def of(cls, arrays: dict[str, Any], plain: dict[str, Any]) -> "Batch":
        """A batch from what `arrays` and `plain` gave."""
        lists = {"keys": tuple(plain["keys"]), "bad": tuple(BadSample(**one) for one in plain["bad"])}
        return cls(**arrays, **(plain | lists))


def assemble(
    samples: Sequence[Encoded],
    *,
    crops: NDArray[np.uint8],
    crop_chunks: int,
    label_chunks: int,
    number: int,
    bad: Sequence[BadSample] = (),
    array: Callable[[tuple[int, ...], Any], NDArray[Any]] = np.empty,
) -> Batch:
    """Lay samples out as one pack; none makes an empty pack: one token 0 that nothing is learned from.

    Args:
        crops: uint8 [K, 3, c, c], those of all samples one behind the other.
        array: gives memory for each other array, by shape and dtype.
    """
    ids = [sample.input_ids for sample in samples] or [np.zeros(1, np.int64)]
    labels = [sample.labels for sample in samples] or [np.full(1, IGNORED, np.int64)]
    lengths = [len(one) for one in ids]
    places = [np.arange(length, dtype=np.int64) for length in lengths]
    grids = [np.zeros((0, 2), np.int64), *(sample.grids for sample in samples)]
    tokens = (sum(lengths),)
    return Batch(
        input_ids=np.concatenate(ids, out=array(tokens, np.int64)),
        position_ids=np.concatenate(places, out=array(tokens, np.int64)),
        labels=np.concatenate(labels, out=array(tokens, np.int64)),
        cu_seqlens=np.cumsum([0, *lengths], out=array((len(lengths) + 1,), np.int32)),
        crops=crops,
        grids=np.concatenate(grids, out=array((sum(map(len, grids)), 2), np.int64)),
        keys=tuple(sample.key for sample in samples),
        crop_chunks=crop_chunks,
        label_chunks=label_chunks,
        number=number,
        bad=tuple(bad),
    )
