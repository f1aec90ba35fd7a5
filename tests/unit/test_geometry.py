"""Canvas, grid and token counts; the published size cases are compared in test_golden.py."""

import numpy as np
import pytest

from data.geometry import canvas, grids, image_tokens


@pytest.mark.parametrize(("num_crops", "crop_size"), [(1, 336), (4, 336), (16, 336), (4, 56), (9, 28)])
def test_many_at_once_equal_one_at_a_time(num_crops: int, crop_size: int) -> None:
    drawn = np.random.default_rng(0).integers(1, 3000, (3000, 2))
    sizes = drawn[drawn.max(axis=1) < crop_size * num_crops // 2 * drawn.min(axis=1)]
    places = [canvas(int(w), int(h), num_crops, crop_size) for w, h in sizes]
    assert grids(sizes, num_crops, crop_size).tolist() == [[place.rows, place.columns] for place in places]


def test_a_canvas_holds_its_picture() -> None:
    for width, height in np.random.default_rng(1).integers(1, 2000, (500, 2)).tolist():
        if max(width, height) > 300 * min(width, height):
            continue
        place = canvas(width, height, 4)
        assert place.transposed == (width < height)
        assert (place.width, place.height) == (place.columns * 336, place.rows * 336)
        assert 0 <= place.left <= place.width - place.resized_width
        assert 0 <= place.top <= place.height - place.resized_height
        assert place.rows * place.columns <= 4


def test_token_counts_of_the_specification() -> None:
    assert [image_tokens(*grid) for grid in [(1, 2), (2, 2), (3, 4), (4, 4)]] == [457, 757, 1921, 2509]
    assert image_tokens(np.array([1, 4]), np.array([2, 4])).tolist() == [457, 2509]


def test_no_pictures_have_no_grids() -> None:
    assert grids(np.zeros((0, 2), np.int64), 4).shape == (0, 2)


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000), (0, 5)])
def test_a_size_without_a_canvas_is_an_error(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"too thin|at least 1"):
        canvas(*size, 16)
    with pytest.raises(ValueError, match=r"too thin|at least 1"):
        grids(np.array([(10, 10), size]), 16)
