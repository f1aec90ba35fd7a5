"""Near duplicates: which pictures are copies of which, encoded, resized or recoloured, among millions.

Two pictures are near when one's greys follow from the other's by a curve of tones (brightness, contrast, gamma), up to
a small rest, and their colours agree. Whom a picture is compared with at all is found by binary keys: signs of its
lowest frequencies, in four sets of twenty, each also with its five least certain signs turned. Every answer about a
pair depends on the two and on earlier pictures alone, so that pictures which are added later change none.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.looks import LOOK_BYTES, PATCHES, SIDE
from data.taking import DISTANCE

COLOUR_DISTANCE = 0.45
"""Of the colourfulness, the share that a copy's colours may differ by once their strength is fitted."""
FLAT = 3.0
"""Standard deviation in grey levels below which a picture has no shapes: it is a copy only of the very same bytes."""

Ints = NDArray[np.int64]
Places = NDArray[np.int32]
Looks = NDArray[np.uint8]
Floats = NDArray[np.float64]
_BANDS, _BITS, _WEAK = 4, 20, 5
_DIFFERENT = 24  # of the 80 signs; pairs with more are left out without a closer look
_EARLIEST, _LATEST = 12, 12  # compared of those with one key: so many of the first ones and of the ones just before
_KNOTS = 6  # of the curve of tones
_BLOCK = 1 << 10  # pairs looked at closely at a time
_GATHERED = 1 << 11  # pairs that are worth it
_PAIRS = 1 << 16  # pairs whose signs are compared at a time
_ROWS = 1 << 12  # pictures whose keys are made at a time
_HELD = 1 << 16  # likenesses, 12 MB


@dataclass(frozen=True, slots=True)
class _Keys:
    """Of each picture with shapes, in order: its place, its key in each band, the certainty order, all signs."""

    places: Ints
    keys: NDArray[np.uint32]
    """[bands, pictures]"""
    weak: NDArray[np.uint8]
    """[bands, pictures, weak]: the least certain bits of each key."""
    signs: NDArray[np.uint64]
    """[pictures, 2]"""


class _Likenesses:
    """Those of a file, oldest picture first; held if they are few."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        self._held = self._read(0, count) if count <= _HELD else None

    def _read(self, first: int, count: int) -> Looks:
        found = np.fromfile(self._path, np.uint8, count * LOOK_BYTES, offset=first * LOOK_BYTES)
        return found.reshape(count, LOOK_BYTES)

    def stretch(self, first: int, count: int) -> Looks:
        """Some in a row."""
        return self._read(first, count) if self._held is None else self._held[first : first + count]

    def picked(self, places: Ints) -> Looks:
        """Some from all over: read, for of a mapped file each would bring sixteen pages of memory along."""
        if self._held is not None:
            return self._held[places]
        found = np.empty((len(places), LOOK_BYTES), np.uint8)
        with self._path.open("rb", buffering=0) as stream:
            for place, row in zip(places.tolist(), found, strict=True):
                os.preadv(stream.fileno(), [row.data], place * LOOK_BYTES)
        return found


def near_pairs(file: Path, compared: NDArray[np.bool_], distance: float = DISTANCE) -> Ints:
    """Pairs of pictures that are near duplicates.

    Arguments: a file of likenesses of LOOK_BYTES each, oldest picture first; bool [pictures], which of them are
    compared at all (of equal ones, one); the largest distance.
    Returns: int64 [pairs, 2], each (earlier, later). Not every pair of a crowd of copies, but enough to join them all.
    """
    found, count = [np.zeros((0, 2), np.int64)], len(compared)
    if count and distance > 0:
        looks = _Likenesses(file, count)
        equal = _equal_ones(looks, compared)
        found.append(equal)
        compared = compared.copy()
        compared[equal[:, 1]] = False
        # Of each picture an earlier one that it is known to be near to, so that a crowd of copies is not compared each
        # with each: those with the same leader are joined already. Updated at fixed places alone: whether a pair is
        # looked at must not depend on how many other pictures there are.
        leader = np.arange(count)
        for probe in _candidates(_keys(looks, compared)):
            apart = (pairs[leader[pairs[:, 0]] != leader[pairs[:, 1]]] for pairs in probe)
            near = [_near_ones(looks, pairs, distance) for pairs in _gathered(apart)]
            if near:
                found += near
                pairs = np.concatenate(near)
                # Backwards, so that of several earlier pictures the earliest stays.
                lone = pairs[(leader[pairs] == pairs).all(1)][::-1]
                leader[lone[:, 1]] = lone[:, 0]
    return np.unique(np.concatenate(found), axis=0)


def _equal_ones(looks: _Likenesses, compared: NDArray[np.bool_]) -> Ints:
    """Pairs of pictures with the very same likeness, each with the earliest; a search for near ones need not see them.

    Catalogues have many: pictures stored twice that differ in metadata alone. Flat ones are left out, as everywhere.
    """
    digests = np.empty(len(compared), np.uint64)
    shaped = compared.copy()
    factors = np.random.default_rng(0).integers(1 << 63, size=LOOK_BYTES // 8, dtype=np.uint64) * 2 + 1
    for first in range(0, len(compared), _ROWS):
        stored = looks.stretch(first, min(_ROWS, len(compared) - first))
        rows = slice(first, first + len(stored))
        digests[rows] = (stored.view(np.uint64) * factors).sum(1)
        shaped[rows] &= _shaped(_greys(stored))
    places = np.flatnonzero(shaped)
    _, firsts, which = np.unique(digests[places], return_index=True, return_inverse=True)
    pairs = np.stack([places[firsts[which]], places], axis=1)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    equal = [(looks.picked(block[:, 0]) == looks.picked(block[:, 1])).all(1) for block in _blocks(pairs)]
    return pairs[np.concatenate([np.zeros(0, np.bool_), *equal])]


def _gathered(batches: Iterable[Ints]) -> Iterator[Ints]:
    """The batches' pairs, many enough at a time to be worth the calls that look at them, and no more than a block."""
    held, count = [np.zeros((0, 2), np.int64)], 0
    for batch in batches:
        held.append(batch)
        count += len(batch)
        if count >= _GATHERED:
            yield from _blocks(np.unique(np.concatenate(held), axis=0))
            held, count = held[:1], 0
    if count:
        yield from _blocks(np.unique(np.concatenate(held), axis=0))


def _blocks(pairs: Ints) -> Iterator[Ints]:
    for start in range(0, len(pairs), _BLOCK):
        yield pairs[start : start + _BLOCK]


def _near_ones(looks: _Likenesses, pairs: Ints, distance: float) -> Ints:
    return pairs[are_near(looks.picked(pairs[:, 0]), looks.picked(pairs[:, 1]), distance)]


def are_near(one: Looks, other: Looks, distance: float = DISTANCE) -> NDArray[np.bool_]:
    """Whether pictures are near duplicates, pair by pair: likenesses uint8 [pairs, LOOK_BYTES] twice → bool [pairs]."""
    near = (one == other).all(1)
    unlike = np.flatnonzero(~near)
    one, other = one[unlike], other[unlike]
    first, second = _greys(one), _greys(other)
    # Cheap and generous: a copy's greys go up and down with the original's.
    likely = np.flatnonzero(_correlation(first, second) > 0.85)
    greys = np.minimum(_rest(first[likely], second[likely]), _rest(second[likely], first[likely]))
    likely = likely[greys <= distance]
    colours = _colour_distance(_colours(one[likely]), _colours(other[likely]))
    near[unlike[likely[colours <= COLOUR_DISTANCE]]] = True
    return near


def _shaped(greys: Floats) -> NDArray[np.bool_]:
    """Whether there is anything to be seen in a likeness: flat ones are like each other without being copies."""
    shaped: NDArray[np.bool_] = greys.std(1) >= FLAT
    return shaped


def _greys(looks: Looks) -> Floats:
    return looks[:, : SIDE * SIDE].astype(np.float64)


def _colours(looks: Looks) -> Floats:
    """Blue and red less grey in each patch, [pictures, 2 × patches]."""
    patches = looks[:, SIDE * SIDE :].reshape(len(looks), PATCHES * PATCHES, 3).astype(np.float64)
    grey = patches @ np.array([0.299, 0.587, 0.114], np.float64)
    blue, red = 0.564 * (patches[:, :, 2] - grey), 0.713 * (patches[:, :, 0] - grey)
    return np.concatenate([blue, red], axis=1)


def _correlation(one: Floats, other: Floats) -> Floats:
    one = one - one.mean(1, keepdims=True)
    other = other - other.mean(1, keepdims=True)
    scale = np.sqrt((one * one).sum(1) * (other * other).sum(1)) + 1e-6
    correlation: Floats = (one * other).sum(1) / scale
    return correlation


def _rest(given: Floats, sought: Floats) -> Floats:
    """What of one picture's contrast is not a curve of the other's tones: RMS of the rest over the standard deviation.

    The curve is piecewise linear between _KNOTS tones, fitted by least squares.
    """
    low, high = given.min(1, keepdims=True), given.max(1, keepdims=True)
    place = (given - low) / (high - low + 1e-3) * (_KNOTS - 1)
    knot = np.minimum(place.astype(np.int64), _KNOTS - 2)
    share = place - knot
    weights = np.zeros((*given.shape, _KNOTS), np.float64)
    pair, pixel = np.arange(len(given))[:, None], np.arange(given.shape[1])[None, :]
    weights[pair, pixel, knot] = 1 - share
    weights[pair, pixel, knot + 1] = share
    transposed = weights.transpose(0, 2, 1)
    products = transposed @ weights + 0.02 * np.eye(_KNOTS, dtype=np.float64)
    curve = np.linalg.solve(products, transposed @ sought[:, :, None])
    rest = (weights @ curve)[:, :, 0] - sought
    # Four levels of variance are noise of rounding and of the encoder.
    share_left: Floats = np.sqrt((rest * rest).mean(1) / (sought.var(1) + 4))
    return share_left


def _colour_distance(one: Floats, other: Floats) -> Floats:
    """How far colours are apart when one side may be stronger or paler all over; grey pictures are not far."""
    noise = 16.0 * one.shape[1]
    ones, others, both = (one * one).sum(1), (other * other).sum(1), (one * other).sum(1)

    def missed(given: Floats, sought: Floats, size: Floats) -> Floats:
        strength = np.clip(both / (size + 1e-3), 0.6, 1.7)[:, None]
        share: Floats = ((sought - strength * given) ** 2).sum(1) / ((sought * sought).sum(1) + noise)
        return share

    apart: Floats = np.sqrt(np.maximum(missed(one, other, ones), missed(other, one, others)))
    return apart


def _frequencies() -> Floats:
    """The lowest frequencies of a likeness without its mean, as one matrix of whole numbers [pixels, bands × bits]."""
    cosines = np.cos(np.pi / SIDE * np.arange(SIDE)[:, None] * (np.arange(SIDE) + 0.5)[None, :])
    order = sorted(((i, j) for i in range(SIDE) for j in range(SIDE) if i + j), key=lambda at: (sum(at), max(at), at))
    waves = [np.outer(cosines[i], cosines[j]).ravel() for i, j in order[: _BANDS * _BITS]]
    return np.round(4096 * np.stack(waves, axis=1))


def _keys(looks: _Likenesses, compared: NDArray[np.bool_]) -> _Keys:
    waves = _frequencies()
    # Room for all of them at once: pieces put together later would be there twice.
    most, count = int(np.count_nonzero(compared)), 0
    found = _Keys(
        places=np.empty(most, np.int64),
        keys=np.empty((_BANDS, most), np.uint32),
        weak=np.empty((_BANDS, most, _WEAK), np.uint8),
        signs=np.empty((most, 2), np.uint64),
    )
    for first in range(0, len(compared), _ROWS):
        rows = min(_ROWS, len(compared) - first)
        greys = _greys(looks.stretch(first, rows))
        shaped = np.flatnonzero(_shaped(greys) & compared[first : first + rows])
        own = slice(count, count + len(shaped))
        greys = greys[shaped]
        # Whole numbers below 2**53, so that the sums are exact and the same on any machine.
        heights = (greys * greys.shape[1] - greys.sum(1, keepdims=True)) @ waves
        positive = heights > 0
        for band in range(_BANDS):
            # Every fourth frequency, so that each band has low and high ones.
            bits = positive[:, band::_BANDS]
            found.keys[band, own] = bits @ (1 << np.arange(_BITS, dtype=np.uint32))
            certainty = np.argsort(np.abs(heights[:, band::_BANDS]), axis=1, kind="stable")
            found.weak[band, own] = certainty[:, :_WEAK]
        packed = np.packbits(positive, axis=1)
        found.signs[own] = np.pad(packed, ((0, 0), (0, 16 - packed.shape[1]))).view(np.uint64)
        found.places[own] = shaped + first
        count += len(shaped)
    return _Keys(found.places[:count], found.keys[:, :count], found.weak[:, :count], found.signs[:count])


def _candidates(pictures: _Keys) -> Iterator[Iterator[Ints]]:
    """Pairs worth a closer look, [pairs, 2] (earlier, later): for each probe of each band some batches."""
    count = len(pictures.places)
    later = np.arange(count, dtype=np.int32)  # as are all that follow: there may be millions
    for band in range(_BANDS):
        keys = pictures.keys[band]
        order = np.argsort(keys, kind="stable").astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=1 << _BITS))]).astype(np.int32)
        place_in_order = np.empty(count, np.int32)
        place_in_order[order] = later
        for turned in range(1 << _WEAK):
            mask = np.zeros(count, np.uint32)
            for bit in range(_WEAK):
                if turned >> bit & 1:
                    mask |= np.uint32(1) << pictures.weak[band, :, bit].astype(np.uint32)
            probed = keys ^ mask
            yield _first_ones(pictures, order, starts[probed], starts[probed + 1])
        yield _just_before(pictures, order, place_in_order, place_in_order - starts[keys])


def _first_ones(pictures: _Keys, order: Places, low: Places, high: Places) -> Iterator[Ints]:
    for step in range(_EARLIEST):
        asking = np.flatnonzero(low + step < high)
        if not asking.size:
            return
        for some in _parts(asking):
            yield _close(pictures, order[low[some] + step], some)


def _just_before(pictures: _Keys, order: Places, place_in_order: Places, before: Places) -> Iterator[Ints]:
    for step in range(1, _LATEST + 1):
        asking = np.flatnonzero(before - step >= _EARLIEST)
        if not asking.size:
            return
        for some in _parts(asking):
            yield _close(pictures, order[place_in_order[some] - step], some)


def _parts(asking: Ints) -> Iterator[Ints]:
    for start in range(0, len(asking), _PAIRS):
        yield asking[start : start + _PAIRS]


def _close(pictures: _Keys, earlier: Places, later: Ints) -> Ints:
    """Those pairs whose signs differ in few places, as places of the pictures."""
    older = np.flatnonzero(earlier < later)
    earlier, later = earlier[older], later[older]
    apart = np.bitwise_count(pictures.signs[earlier] ^ pictures.signs[later]).sum(1)
    close = apart <= _DIFFERENT
    return np.stack([pictures.places[earlier[close]], pictures.places[later[close]]], axis=1)
