"""The loader's compiled resizing is Pillow's, to the last bit."""

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data.geometry import canvas
from tests.factories.small_models import noise
from train.model.crops import canvas_crops
from train.pipeline import pixels
from train.pipeline.resample import resample, weights


def crops_of(picture: Image.Image, num_crops: int, crop_size: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture's crops by the compiled way and by Pillow."""
    place = canvas(picture.width, picture.height, num_crops, crop_size)
    wanted, _ = canvas_crops(picture, num_crops, crop_size)
    own = np.full_like(wanted, 7)
    resample(pixels._pixels(picture), place, own)
    return own, wanted


@settings(deadline=None)  # it is compiled meanwhile
@given(
    width=st.integers(4, 300),
    height=st.integers(4, 300),
    num_crops=st.integers(1, 16),
    crop_size=st.sampled_from([14, 28, 42]),
)
@example(width=56, height=56, num_crops=4, crop_size=28)  # neither side changes
@example(width=56, height=40, num_crops=4, crop_size=28)
@example(width=300, height=9, num_crops=16, crop_size=14)
def test_crops_are_those_of_pillow_in_every_size(width: int, height: int, num_crops: int, crop_size: int) -> None:
    assume(max(width, height) < crop_size * min(width, height))  # thinner ones are refused
    own, wanted = crops_of(noise(width, height), num_crops, crop_size)
    assert np.array_equal(own, wanted)


@pytest.mark.parametrize("size", [(400, 533), (533, 400), (1000, 1100), (1900, 1400)])
@pytest.mark.parametrize("num_crops", [4, 16])
def test_crops_of_the_published_size_are_those_of_pillow(size: tuple[int, int], num_crops: int) -> None:
    own, wanted = crops_of(noise(*size), num_crops, 336)
    assert np.array_equal(own, wanted)


@pytest.mark.parametrize("level", [0, 255])
def test_the_brightest_stays_the_brightest(level: int) -> None:
    own, wanted = crops_of(Image.new("RGB", (331, 247), (level, 255 - level, level)), 16, 28)
    assert np.array_equal(own, wanted)


def test_weights_make_up_one() -> None:
    for before, after in ((3, 1000), (1000, 3), (17, 17), (1, 5)):
        first, counts, fixed = weights(before, after)
        assert (abs(fixed.sum(1) - 2**22) <= counts).all()
        assert ((first >= 0) & (first + counts <= before)).all()


@pytest.fixture
def untried() -> Iterator[None]:
    """As in a process that has resized nothing yet."""
    pixels.compiled_resample.cache_clear()
    yield
    pixels.compiled_resample.cache_clear()


@pytest.mark.parametrize("fault", ["absent", "other bits"])
def test_without_it_pillow_makes_the_same_crops_and_that_is_told(
    fault: str, untried: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = noise(70, 45)
    wanted, _ = canvas_crops(picture, 4, 28)
    own = np.empty_like(wanted)
    if fault == "absent":
        monkeypatch.setitem(sys.modules, "train.pipeline.resample", None)
    else:
        monkeypatch.setattr("train.pipeline.resample.resample", lambda pixels, place, out: out.fill(0))
    pixels.fill_crops(picture, 4, 28, own)
    assert np.array_equal(own, wanted)
    said = "".join(capfd.readouterr())
    assert said.count("resized by Pillow") == 1
    assert ("ModuleNotFoundError" if fault == "absent" else "not give what Pillow gives") in said


def test_what_pillow_does_as_quickly_is_left_to_it() -> None:
    place = canvas(400, 300, 4, 336)
    assert pixels.suits(400, 300, place)
    assert not pixels.suits(place.resized_width, 300, place)
    assert not pixels.suits(place.resized_width * 3, place.resized_height * 3, place)
