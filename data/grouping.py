"""Groups: rows that share a product or a picture, or whose pictures are near duplicates, and the split of each."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]
LEAK = -1
Mark = tuple[str, int]


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


def deal(links: Links, own: Ints, ages: Ints | None = None) -> Dealt:
    """Give each group one split: that of its oldest row.

    Rows that came together are grouped together, over any number of others. What came earlier stands where it was put:
    a decision rests on rows of its own age and older ones alone. A row that would join groups which stand in different
    splits already is a leak.
    Arguments: what rows share; for each row the split of its own product; for each row, rising, in which of the
    catalogue's deliveries it came, None where there was one.
    """
    oldest = oldest_of_groups(links)
    codes = own[oldest]
    leaks: dict[int, list[int]] = {}
    if ages is not None and len(ages) and ages[0] != ages[-1]:
        mixed = np.zeros(len(own), np.bool_)
        mixed[oldest[own != codes]] = True
        # Where all would stand in one split anyway it is no matter what came first; that is nearly everywhere.
        contested = np.flatnonzero(mixed[oldest])
        if len(contested):
            dealer = _Dealer(links, own, contested, codes)
            for age in np.unique(ages[contested]).tolist():
                dealer.add(contested[ages[contested] == age].tolist())
            oldest[contested] = [dealer.oldest(row) for row in contested.tolist()]
            leaks = dealer.leaks
    return Dealt(oldest=oldest, codes=codes, leaks=leaks)


class _Dealer:
    """Deals some rows delivery by delivery; fills in `codes` at their places."""

    def __init__(self, links: Links, own: Ints, rows: Ints, codes: Ints) -> None:
        first = first_places(links.pictures)
        starts = np.searchsorted(links.picture_rows, rows)
        ends = np.searchsorted(links.picture_rows, rows, side="right")
        near: dict[int, list[int]] = defaultdict(list)
        wanted = np.isin(links.picture_rows[links.near[:, 0]], rows) if len(links.near) else np.zeros(0, np.bool_)
        for one, other in links.near[wanted].tolist():
            near[one].append(other)
            near[other].append(one)
        self.own, self.codes = own, codes
        self.leaks: dict[int, list[int]] = {}
        self._marks: dict[int, list[Mark]] = {}
        """Of each row: what it has in common with the rows of the same product and pictures."""
        self._known: dict[int, list[Mark]] = {}
        """Of each row: the same, and what the rows with near pictures have."""
        for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
            pictures = first[start:end].tolist()
            self._marks[row] = [("product", int(links.products[row])), *(("picture", one) for one in pictures)]
            copies = [("picture", copy) for one in pictures for copy in near.get(one, ())]
            self._known[row] = [*self._marks[row], *copies]
        self._parent: dict[int, int] = {}
        self._holders: dict[Mark, int] = {}

    def oldest(self, row: int) -> int:
        """The oldest row of a row's group; of a leak the row itself."""
        parent = self._parent
        while parent.get(row, row) != row:
            parent[row] = row = parent.get(parent[row], parent[row])
        return row

    def add(self, rows: list[int]) -> None:
        """Deal a delivery, whose rows rise and come after all earlier ones."""
        for together in self._bundles(rows):
            earlier = {row: self._roots(row) for row in together}
            roots = sorted(set().union(*earlier.values()))
            if len({int(self.codes[root]) for root in roots}) <= 1:
                root = roots[0] if roots else together[0]
                code = int(self.codes[root] if roots else self.own[root])
                for row in together:
                    self._join(row, [*roots, root], code)
                continue
            for row in self._by_distance(together, earlier):
                roots = sorted(self._roots(row))
                if len({int(self.codes[root]) for root in roots}) > 1:
                    self.leaks[row], self.codes[row] = roots, LEAK
                else:
                    self._join(row, roots or [row], int(self.codes[roots[0]] if roots else self.own[row]))

    def _roots(self, row: int) -> set[int]:
        """The oldest rows of the groups that a row would join."""
        return {self.oldest(self._holders[mark]) for mark in self._known[row] if mark in self._holders}

    def _join(self, row: int, roots: list[int], code: int) -> None:
        oldest = min(self.oldest(root) for root in roots)
        for one in (*roots, row):
            self._parent[self.oldest(one)] = oldest
        self._parent.setdefault(oldest, oldest)
        self.codes[row] = code
        for mark in self._marks[row]:
            self._holders.setdefault(mark, row)

    def _neighbours(self, rows: list[int]) -> dict[int, set[int]]:
        """Of each row the others of the same delivery that it has something in common with."""
        having: dict[Mark, list[int]] = defaultdict(list)
        for row in rows:
            for mark in self._marks[row]:
                having[mark].append(row)
        return {row: {other for mark in self._known[row] for other in having.get(mark, ())} - {row} for row in rows}

    def _bundles(self, rows: list[int]) -> list[list[int]]:
        """The rows of a delivery that belong together over any number of others of it, each bundle rising."""
        neighbours, seen, found = self._neighbours(rows), set(), []
        for row in rows:
            if row in seen:
                continue
            bundle, waiting = [], [row]
            seen.add(row)
            while waiting:
                bundle.append(waiting.pop())
                fresh = neighbours[bundle[-1]] - seen
                seen |= fresh
                waiting += sorted(fresh)
            found.append(sorted(bundle))
        return found

    def _by_distance(self, rows: list[int], earlier: dict[int, set[int]]) -> list[int]:
        """Rows next to earlier groups first, then those next to them, so that each joins the group it hangs on."""
        neighbours, order = self._neighbours(rows), [row for row in rows if earlier[row]]
        seen = set(order)
        for row in order:
            fresh = sorted(neighbours[row] - seen)
            seen |= set(fresh)
            order += fresh
        return order
