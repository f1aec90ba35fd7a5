"""Groups: rows that share a product or a picture, or whose pictures are near duplicates, and the split of each."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
LEAK = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """What rows have in common."""

    products: Hashes
    """[rows], a hash of each row's product."""
    picture_rows: Ints
    """[pictures], the place of each picture's row; rising."""
    pictures: Hashes
    """[pictures], a hash of each picture's bytes."""
    near: Ints
    """[pairs, 2], places among the pictures of those that are near duplicates, each the first with its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """Where rows stand."""

    oldest: Ints
    """[rows], the oldest row of each one's group."""
    codes: Ints
    """[rows], the number of each one's split; LEAK for a row that would join groups of different splits."""
    leaks: dict[int, list[int]]
    """Row that is a leak → the oldest rows of the groups it would join."""


def first_places(hashes: Hashes) -> Ints:
    """For each place, the first place with the same hash."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    places: Ints = first[inverse].astype(np.int64)
    return places


def oldest_of_groups(links: Links) -> Ints:
    """For each row the oldest of its group: rows belong together over any number of others. int64 [rows]."""
    count = len(links.products)
    oldest = np.arange(count, dtype=np.int64)
    product_codes = np.unique(links.products, return_inverse=True)[1]
    shared = np.unique(links.pictures, return_inverse=True)[1]
    # A pair of near duplicates is what its two rows share, as rows share a picture.
    pairs = len(links.pictures) + np.repeat(np.arange(len(links.near)), 2)
    codes = np.concatenate([shared, pairs])
    rows = np.concatenate([links.picture_rows, links.picture_rows[links.near.ravel()]])
    while True:
        by_product = np.full(count, count, np.int64)
        np.minimum.at(by_product, product_codes, oldest)
        found = by_product[product_codes]
        by_picture = np.full(len(links.pictures) + len(links.near), count, np.int64)
        np.minimum.at(by_picture, codes, found[rows])
        np.minimum.at(found, rows, by_picture[codes])
        found = found[found]
        if np.array_equal(found, oldest):
            return oldest
        oldest = found


def deal(links: Links, own: Ints) -> Dealt:
    """Give each group one split: that of its oldest row.

    Rows are taken in order, and each decision rests on the rows before it alone: rows that are added to a catalogue
    never move one that was there. A row that would join groups which stand in different splits already is a leak.
    Arguments: what rows share; for each row the split of its own product.
    """
    oldest = oldest_of_groups(links)
    codes = own[oldest]
    mixed = np.zeros(len(own), np.bool_)
    mixed[oldest[own != codes]] = True
    # Where all would stand in one split anyway no order matters; that is nearly everywhere.
    contested = mixed[oldest]
    leaks = {}
    if contested.any():
        leaks = _in_order(links, own, np.flatnonzero(contested), oldest, codes)
    return Dealt(oldest=oldest, codes=codes, leaks=leaks)


def _in_order(links: Links, own: Ints, rows: Ints, oldest: Ints, codes: Ints) -> dict[int, list[int]]:
    """Deal some rows one by one; fills in `oldest` and `codes` at their places and returns the leaks."""
    first = first_places(links.pictures)
    starts = np.searchsorted(links.picture_rows, rows)
    ends = np.searchsorted(links.picture_rows, rows, side="right")
    near: dict[int, list[int]] = defaultdict(list)
    wanted = np.isin(links.picture_rows[links.near[:, 0]], rows) if len(links.near) else np.zeros(0, np.bool_)
    for one, other in links.near[wanted].tolist():
        near[one].append(other)
        near[other].append(one)
    parent: dict[int, int] = {}
    holder: dict[tuple[str, int], int] = {}
    leaks = {}

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
        pictures = first[start:end].tolist()
        marks = [("product", int(links.products[row])), *(("picture", picture) for picture in pictures)]
        known = [*marks, *(("picture", copy) for picture in pictures for copy in near.get(picture, ()))]
        roots = sorted({find(holder[mark]) for mark in known if mark in holder})
        if len({int(codes[root]) for root in roots}) > 1:
            leaks[row] = roots
            codes[row], oldest[row] = LEAK, row
            continue
        root = roots[0] if roots else row
        codes[row] = codes[root] if roots else own[row]
        for joined in (*roots, row):
            parent[joined] = root
        for mark in marks:
            holder.setdefault(mark, row)
    for row in parent:
        oldest[row] = find(row)
    return leaks
