import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.factories.small_models import noise
from train.model.crops import canvas_crops, tower_crops
from train.pipeline.pixels import fill_crops


def test_crops_are_cut_row_by_row_from_the_canvas() -> None:
    picture = noise(56, 56)
    crops, grid = canvas_crops(picture, 4, 28)
    pixels = np.asarray(picture).transpose(2, 0, 1)
    assert grid == (2, 2)
    assert crops.dtype == np.uint8
    assert np.array_equal(crops[1], pixels[:, :28, 28:])
    assert np.array_equal(crops[2], pixels[:, 28:, :28])


def test_a_wide_picture_gets_white_bars_above_and_below() -> None:
    crops, grid = canvas_crops(noise(80, 60), 1, 28)
    assert grid == (1, 1)
    assert (crops[0][:, :3] == 255).all()
    assert (crops[0][:, -4:] == 255).all()
    assert not (crops[0][:, 3] == 255).all()


def test_a_tall_picture_is_a_wide_one_transposed() -> None:
    wide = noise(70, 33)
    tall = wide.transpose(Image.Transpose.TRANSPOSE)
    lying, (rows, columns) = canvas_crops(wide, 4, 28)
    standing, grid = canvas_crops(tall, 4, 28)
    assert grid == (columns, rows)
    assert np.array_equal(lying[0].transpose(0, 2, 1), standing[0])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_mode_is_taken_as_rgb(mode: str) -> None:
    picture = noise(30, 40, mode=mode)
    crops, _ = canvas_crops(picture, 1, 28)
    assert np.array_equal(crops, canvas_crops(picture.convert("RGB"), 1, 28)[0])


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("size", [(56, 56), (80, 60), (33, 70), (28, 28)])
def test_crops_of_the_loader_are_the_same_crops(
    size: tuple[int, int], in_pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_pieces:

        def refuse(_: Image.Image) -> None:
            raise ValueError("Image is in multiple array blocks, use imaging_new_block for zero copy")

        monkeypatch.setattr("train.pipeline.pixels.pa.array", refuse)
    picture = noise(*size)
    crops, _ = canvas_crops(picture, 4, 28)
    out = np.empty((len(crops), 3, 28, 28), np.uint8)
    fill_crops(picture, 4, 28, out)
    assert np.array_equal(out, crops)


def test_a_large_canvas_lies_in_several_pieces_of_memory() -> None:
    out = np.empty((81, 3, 336, 336), np.uint8)
    picture = noise(64, 64)
    fill_crops(picture, 81, 336, out)
    assert np.array_equal(out, canvas_crops(picture, 81, 336)[0])


def test_room_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="reshape"):
        fill_crops(noise(56, 56), 4, 28, np.empty((3, 3, 28, 28), np.uint8))


def test_a_picture_too_thin_for_its_canvas_is_refused() -> None:
    with pytest.raises(ValueError, match="thin"):
        canvas_crops(noise(200, 1), 2, 28)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(TypeError, match="PIL"):
        canvas_crops(np.zeros((3, 3, 3)), 4)  # type: ignore[arg-type]


def test_a_picture_of_one_crop_is_its_own_global_view() -> None:
    assert tower_crops(1, 1) == 1
    assert tower_crops(2, 3) == 7


def test_crops_and_conversations_need_no_torch() -> None:
    code = "import sys, train.model.crops, data.conversation\nassert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
