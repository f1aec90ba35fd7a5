"""Near duplicates: copies are found among pictures that look alike, the same ones however many pictures there are."""

import random
from pathlib import Path

import numpy as np
import pytest

from data import near
from data.grouping import Links, deal, oldest_of_groups
from data.images import check_picture
from data.looks import LOOK_BYTES
from data.near import are_near, near_pairs
from data.sample.draw import draw_picture
from data.sample.rows import draw_item
from data.taking import DISTANCE
from tests.factories.copies import copy_of, upright

COPIES = 5


def looks_of(pictures: list[bytes]) -> np.ndarray:
    return np.stack([np.frombuffer(check_picture(data).look, np.uint8) for data in pictures])


def pairs_of(folder: Path, looks: np.ndarray, distance: float = DISTANCE) -> np.ndarray:
    (folder / "looks").write_bytes(looks.tobytes())
    return near_pairs(folder / "looks", np.ones(len(looks), np.bool_), distance)


def groups_of(folder: Path, looks: np.ndarray) -> Links:
    """Every picture a row and a product of its own."""
    every = np.arange(len(looks))
    return Links(
        products=every.astype(np.uint64),
        picture_rows=every,
        pictures=every.astype(np.uint64),
        near=pairs_of(folder, looks),
    )


def in_two_splits(links: Links, copies: dict[int, range]) -> tuple[int, int]:
    """Originals of which a copy is not of their group, and of which a copy stands in another split."""
    own = (np.random.default_rng(0).random(len(links.products)) < 0.2).astype(np.int64)
    dealt, oldest = deal(links, own), oldest_of_groups(links)
    apart = sum(len(set(oldest[[first, *rest]].tolist())) > 1 for first, rest in copies.items())
    split = sum(len(set(dealt.codes[[first, *rest]].tolist()) - {-1}) > 1 for first, rest in copies.items())
    return apart, split


def with_copies(pictures: list[bytes], chosen: list[int], seed: int) -> tuple[np.ndarray, dict[int, range]]:
    rng, listed, copies = random.Random(seed), list(pictures), {}
    for number in chosen:
        original = upright(pictures[number])
        copies[number] = range(len(listed), len(listed) + COPIES)
        listed += [copy_of(original, rng) for _ in range(COPIES)]
    return looks_of(listed), copies


def drawn(count: int) -> list[bytes]:
    return [draw_picture(0, draw_item(0, number)) for number in range(count)]


def test_copies_stand_with_their_original_and_others_do_not(tmp_path: Path) -> None:
    looks, copies = with_copies(drawn(60), list(range(0, 60, 5)), seed=1)
    links = groups_of(tmp_path, looks)
    assert in_two_splits(links, copies) == (0, 0)
    oldest = oldest_of_groups(links)
    assert len(set(oldest[:60].tolist())) >= 59


def test_many_pictures_are_not_held_and_have_the_same_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, _ = with_copies(drawn(20), [3, 8], seed=1)
    held = pairs_of(tmp_path, looks)
    assert len(held) >= 2
    monkeypatch.setattr(near, "_HELD", 0)
    assert np.array_equal(pairs_of(tmp_path, looks), held)


@pytest.mark.soak
def test_two_hundred_products_with_five_copies_each(tmp_path: Path, material: Path) -> None:
    photographs = [path.read_bytes() for path in sorted((material / "clothing" / "images").glob("*/*.jpg"))]
    for name, pictures, merged in (("drawn", drawn(1000), 10), ("photographs", photographs, 2)):
        alone = pairs_of(tmp_path, looks_of(pictures))
        print(f"{name}: {len(alone)} of {len(pictures) * (len(pictures) - 1) // 2:,} unrelated pairs taken for copies")
        assert len(np.unique(alone)) <= merged
        chosen = np.linspace(0, len(pictures) - 1, 200).astype(int).tolist()
        looks, copies = with_copies(pictures, chosen, seed=2)
        apart, split = in_two_splits(groups_of(tmp_path, looks), copies)
        print(f"{name}: of 200 groups {apart} were not joined whole, {split} stand in two splits")
        assert split == 0


def scattered(count: int, seed: int = 0) -> np.ndarray:
    """Likenesses with shapes, of nothing in particular."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (count, 4, 4), np.uint8)
    fine = coarse.repeat(3, axis=1).repeat(3, axis=2).reshape(count, -1)
    return np.concatenate([fine, rng.integers(0, 255, (count, LOOK_BYTES - fine.shape[1]), np.uint8)], axis=1)


def test_pictures_that_come_later_change_no_pair_of_earlier_ones(tmp_path: Path) -> None:
    base = scattered(300)
    noisy = np.clip(
        base[np.arange(1500) % 300].astype(int) + np.random.default_rng(1).integers(-9, 9, (1500, 1)), 0, 255
    )
    looks = np.concatenate([base, noisy.astype(np.uint8)])
    whole = pairs_of(tmp_path, looks)
    assert len(whole) >= 1500
    for count in (400, 1000, 1799):
        part = pairs_of(tmp_path, looks[:count])
        assert part.tolist() == whole[whole.max(axis=1) < count].tolist()


def test_a_crowd_of_copies_is_one_group(tmp_path: Path) -> None:
    crowd = np.concatenate([scattered(1).repeat(3000, axis=0), scattered(200, seed=5)])
    oldest = oldest_of_groups(groups_of(tmp_path, crowd))
    assert (oldest[:3000] == 0).all()
    assert len(set(oldest.tolist())) == 201


def test_pictures_without_shapes_are_near_to_nothing(tmp_path: Path) -> None:
    flat = np.full((50, LOOK_BYTES), 128, np.uint8)
    assert len(pairs_of(tmp_path, flat)) == 0


def test_the_same_shapes_in_another_colour_are_another_picture() -> None:
    one = scattered(1)
    other = one.copy()
    other[:, 144:] = one[:, 144:].reshape(-1, 16, 3)[:, :, ::-1].reshape(1, -1)
    assert are_near(one, one).all()
    assert not are_near(one, other).any()


def test_distance_zero_looks_for_none(tmp_path: Path) -> None:
    assert len(pairs_of(tmp_path, scattered(1).repeat(10, axis=0), distance=0)) == 0
