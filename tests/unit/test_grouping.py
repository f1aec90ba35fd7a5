"""Groups over any number of links, and the order in which their splits are decided."""

import numpy as np

from data.grouping import LEAK, Links, deal, oldest_of_groups

NONE = np.zeros((0, 2), np.int64)


def links(products: list[int], pictures: list[int], near: list[tuple[int, int]] | None = None) -> Links:
    """One picture a row."""
    return Links(
        products=np.array(products, np.uint64),
        picture_rows=np.arange(len(pictures)),
        pictures=np.array(pictures, np.uint64),
        near=np.array(near or NONE, np.int64).reshape(-1, 2),
    )


def test_chains_over_products_and_pictures_are_one_group() -> None:
    count = 200
    products = np.repeat(np.arange(count // 2), 2)
    pictures = np.roll(np.append(np.repeat(np.arange(count // 2 - 1), 2) + 1, [0, 0]), 1)
    order = np.random.default_rng(0).permutation(count)
    assert set(oldest_of_groups(links(products[order].tolist(), pictures[order].tolist())).tolist()) == {0}
    assert oldest_of_groups(links([0, 1, 2], [0, 1, 2])).tolist() == [0, 1, 2]


def test_near_pictures_join_rows_as_equal_ones_do() -> None:
    assert oldest_of_groups(links([0, 1, 2, 3], [0, 1, 2, 3], [(0, 2), (2, 3)])).tolist() == [0, 1, 0, 0]


def test_a_group_stands_where_its_oldest_row_belongs() -> None:
    dealt = deal(links([0, 1, 2, 1], [0, 1, 2, 3], [(0, 1)]), own=np.array([1, 0, 0, 0]))
    assert dealt.codes.tolist() == [1, 1, 0, 1]
    assert dealt.oldest.tolist() == [0, 0, 2, 0]
    assert dealt.leaks == {}


def test_what_would_join_two_splits_is_left_out_and_links_nothing() -> None:
    """Row 2 is near rows 0 and 1; row 3 shares only its product, row 4 only its picture with row 2."""
    shared, own = links([0, 1, 2, 2, 4], [0, 1, 2, 3, 2], [(0, 2), (1, 2)]), np.array([0, 1, 0, 1, 0])
    dealt = deal(shared, own, ages=np.array([0, 0, 1, 2, 3]))
    assert dealt.codes.tolist() == [0, 1, LEAK, 1, LEAK]
    assert dealt.oldest.tolist() == [0, 1, 2, 3, 4]
    assert dealt.leaks == {2: [0, 1], 4: [0, 1]}


def test_rows_that_come_together_stand_together_whichever_of_them_links_the_others() -> None:
    shared, own = links([0, 1, 2], [0, 1, 2], [(0, 2), (1, 2)]), np.array([0, 1, 1])
    assert deal(shared, own).codes.tolist() == [0, 0, 0]
    later = deal(shared, own, ages=np.array([0, 1, 1]))
    assert (later.codes.tolist(), later.oldest.tolist(), later.leaks) == ([0, 0, 0], [0, 0, 0], {})


def test_rows_that_link_what_was_apart_are_taken_from_where_they_hang_on() -> None:
    """Rows 0 and 1 stand in two splits; 2 hangs on 0 over 3, and 4 on 1; 3 and 4 are near each other."""
    near = [(0, 3), (2, 3), (3, 4), (1, 4)]
    dealt = deal(links([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], near), np.array([0, 1, 1, 1, 0]), np.array([0, 0, 1, 1, 1]))
    assert dealt.codes.tolist() == [0, 1, 0, 0, LEAK]
    assert dealt.leaks == {4: [0, 1]}


def test_rows_that_come_later_change_nothing() -> None:
    ages = np.searchsorted([50, 150, 299], np.arange(300), side="right")
    random = np.random.default_rng(1)
    products, pictures = random.integers(0, 90, 300).tolist(), random.integers(0, 200, 300).tolist()
    own = np.array([product % 3 for product in products])
    first = sorted({picture: place for place, picture in reversed(list(enumerate(pictures)))}.values())
    near = [(first[place], first[place + 5]) for place in random.integers(0, len(first) - 5, 20).tolist()]
    whole = deal(links(products, pictures, near), own, ages)
    assert whole.leaks
    for count in (50, 150, 299):
        some = [(one, other) for one, other in near if other < count]
        part = deal(links(products[:count], pictures[:count], some), own[:count], ages[:count])
        assert part.codes.tolist() == whole.codes[:count].tolist()
    apart = [(one, other) for one, other in near if {LEAK} & set(whole.codes[[one, other]].tolist())]
    for one, other in set(near) - set(apart):
        assert whole.codes[one] == whole.codes[other]
