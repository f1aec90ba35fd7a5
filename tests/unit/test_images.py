"""Pictures: what is taken, what is refused and under which reason, and that they stand upright."""

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data import turning
from data.images import PictureError, check_picture, open_picture
from data.taking import Rewriting
from data.turning import upright
from tests.factories.hostile_pictures import hostile


def drawn(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height // 4, width // 4, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height)).convert(mode)


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def rotated(orientation: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(drawn(), kind, exif=exif)


@pytest.mark.parametrize(
    ("kind", "suffix", "mode"),
    [
        ("JPEG", "jpg", "RGB"),
        ("JPEG", "jpg", "L"),
        ("JPEG", "jpg", "CMYK"),
        ("PNG", "png", "RGBA"),
        ("PNG", "png", "P"),
        ("PNG", "png", "1"),
        ("PNG", "png", "LA"),
        ("WEBP", "webp", "RGB"),
        ("GIF", "gif", "P"),
        ("BMP", "bmp", "RGB"),
        ("TIFF", "tiff", "RGB"),
        ("TIFF", "tiff", "CMYK"),
    ],
)
def test_an_upright_picture_keeps_its_bytes(kind: str, suffix: str, mode: str) -> None:
    data = encoded(drawn(mode=mode), kind)
    picture = check_picture(data)
    assert (picture.data, picture.format, picture.width, picture.height) == (data, suffix, 60, 40)
    assert picture.sha256 == hashlib.sha256(data).hexdigest()
    assert 0 <= picture.phash < 2**64
    assert open_picture(data).size == (60, 40)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("TIFF", "png"), ("WEBP", "png")])
def test_a_turned_picture_is_rewritten_upright(kind: str, suffix: str, orientation: int) -> None:
    data = rotated(orientation, kind)
    picture = check_picture(data)
    size = (40, 60) if orientation >= 5 else (60, 40)
    assert picture.format == suffix
    assert (picture.width, picture.height) == size
    assert open_picture(data).size == size
    plain = Image.open(io.BytesIO(picture.data))
    assert plain.size == size, "readers that ignore EXIF see it upright too"
    assert plain.getexif().get(0x0112, 1) == 1
    difference = np.abs(np.asarray(plain.convert("RGB"), int) - np.asarray(open_picture(data).convert("RGB"), int))
    assert difference.mean() < 3
    assert check_picture(data) == picture


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(60, 40), (61, 43), (17, 9), (2, 1), (333, 500)])
def test_a_picture_has_the_pixels_that_pillow_decodes(
    subsampling: str, progressive: bool, size: tuple[int, int]
) -> None:
    data = encoded(drawn().resize(size), subsampling=subsampling, progressive=progressive, restart_marker_rows=1)
    assert_as_pillow_has_it(data)


@pytest.mark.parametrize("options", [{"keep_rgb": True}, {"qtables": "web_high"}, {"quality": 1}, {"optimize": True}])
def test_a_rare_kind_of_jpeg_has_the_pixels_that_pillow_decodes(options: dict[str, object]) -> None:
    assert_as_pillow_has_it(encoded(drawn(333, 200), **options))


def test_a_picture_with_bytes_that_belong_to_nothing_has_the_pixels_that_pillow_decodes() -> None:
    data = encoded(drawn())
    scan = data.index(b"\xff\xda")
    assert_as_pillow_has_it(data[:scan] + b"\0\0\0" + data[scan:])


def test_a_picture_is_opened_the_way_it_was_checked_whatever_its_xmp_says() -> None:
    out = io.BytesIO()
    drawn(60, 40).save(out, "JPEG", xmp=b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    checked, opened = check_picture(out.getvalue()), open_picture(out.getvalue())
    assert opened.size == (checked.width, checked.height)


def assert_as_pillow_has_it(data: bytes) -> None:
    plain, ours = Image.open(io.BytesIO(data)), open_picture(data)
    assert (ours.mode, ours.size) == (plain.mode, plain.size) == ("RGB", plain.size)
    assert ours.tobytes() == plain.tobytes()
    assert ours.resize((30, 50), Image.Resampling.BILINEAR).tobytes() == (
        plain.resize((30, 50), Image.Resampling.BILINEAR).tobytes()
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_large_picture_is_turned_like_a_small_one(
    monkeypatch: pytest.MonkeyPatch, orientation: int, mode: str
) -> None:
    small, large = drawn(67, 41).convert(mode), drawn(67, 41).convert(mode)
    expected = upright(small, orientation)
    monkeypatch.setattr(turning, "LARGE_PIXELS", 0)
    monkeypatch.setattr(turning, "_STRIP_PIXELS", 300)
    found = upright(large, orientation)
    assert (found.mode, found.size, found.tobytes()) == (mode, expected.size, expected.tobytes())


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return header + struct.pack(">I", 1000) + b"IDAT" + zlib.compress(b"\0" * 5000)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "not-a-picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not-a-picture"),
        (b"\0" * 500, "not-a-picture"),
        (encoded(drawn())[:300], "truncated"),
        (encoded(drawn(600, 400))[:-2000], "truncated"),
        (encoded(drawn(600, 400), "PNG")[:3000], "truncated"),
        (png_header(60_000, 60_000), "too-large"),
        (png_header(9_000, 9_000), "too-large"),
        (encoded(drawn().resize((1, 1)), "PNG"), "too-small"),
        (encoded(drawn().resize((404, 4)), "PNG"), "too-thin"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError) as caught:
        check_picture(data)
    assert caught.value.reason == reason
    with pytest.raises(PictureError):
        open_picture(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_picture_cut_anywhere_is_refused(kind: str) -> None:
    data = encoded(drawn(600, 400), kind)
    for tenth in range(10):
        with pytest.raises(PictureError):
            check_picture(data[: len(data) * tenth // 10])


def test_damage_in_the_middle_is_refused_or_decodes() -> None:
    data = bytearray(encoded(drawn(200, 200), "PNG"))
    random = np.random.default_rng(0)
    reasons = set()
    for _ in range(50):
        broken = data.copy()
        for place in random.integers(0, len(data), 20).tolist():
            broken[place] ^= 0x5A
        try:
            check_picture(bytes(broken))
        except PictureError as error:
            reasons.add(error.reason)
    assert reasons <= {"not-a-picture", "damaged", "truncated", "too-large", "too-thin", "too-small"}


@pytest.mark.parametrize(("name", "data", "reasons"), [pytest.param(*one, id=one[0]) for one in hostile()])
def test_hostile_bytes_are_taken_or_refused_with_a_reason(name: str, data: bytes, reasons: str) -> None:
    try:
        check_picture(data)
        found = "ok"
    except PictureError as error:
        found = error.reason
    assert found in reasons.split(), name


def test_a_picture_whose_rest_is_grey_is_truncated() -> None:
    data = encoded(drawn(600, 400))
    grey = data[: len(data) // 2] + b"\xff\xd9"
    Image.open(io.BytesIO(grey)).load()  # Pillow takes it
    with pytest.raises(PictureError, match="premature end"):
        check_picture(grey)


def test_padding_before_the_end_does_no_harm() -> None:
    data = encoded(drawn(600, 400))
    assert check_picture(data[:-2] + bytes(5) + data[-2:]).width == 600


def test_pictures_are_encoded_anew_when_asked_and_lose_their_metadata() -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8825)[1] = "N"
    exif[0x010E] = "taken at home"
    data = encoded(drawn(600, 400), exif=exif, comment=b"a remark", icc_profile=b"profile")
    assert check_picture(data).data == data
    assert check_picture(data, rewriting=Rewriting(max_side=600)).data == data
    for rewriting, size in ((Rewriting(max_side=300), (300, 200)), (Rewriting(quality=60), (600, 400))):
        picture = check_picture(data, rewriting=rewriting)
        plain = Image.open(io.BytesIO(picture.data))
        assert (picture.format, plain.size, (picture.width, picture.height)) == ("jpg", size, size)
        assert not plain.getexif()
        assert set(plain.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert check_picture(data, rewriting=rewriting) == picture
    small = check_picture(encoded(drawn(600, 400, "RGBA"), "PNG"), rewriting=Rewriting(max_side=100, quality=60))
    assert (small.format, small.width, small.height) == ("png", 100, 67)


def test_the_pixel_limit_is_the_callers() -> None:
    data = encoded(drawn())
    assert check_picture(data, max_pixels=60 * 40).width == 60
    with pytest.raises(PictureError, match="2,399"):
        check_picture(data, max_pixels=60 * 40 - 1)


def test_the_perceptual_hash_is_near_for_copies_and_far_for_others() -> None:
    def distance(one: bytes, other: bytes) -> int:
        return (check_picture(one).phash ^ check_picture(other).phash).bit_count()

    picture = drawn(600, 400)
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert distance(encoded(picture, "PNG"), encoded(picture, quality=40)) <= 6
    assert distance(encoded(picture), encoded(picture.resize((300, 200)))) <= 6
    assert distance(encoded(picture), encoded(mirrored)) > 16
