"""Bytes of other people → a picture that is proved to decode and stands upright."""

import hashlib
import io
import struct
import warnings
import zlib

import numpy as np
from PIL import (  # noqa: F401  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from data.schema import Picture

MAX_PIXELS = 50_000_000
MAX_RATIO = 100  # longer side to shorter; beyond it the smallest canvas has no pixel left for the shorter side
# Named with their plugins above, so that no other decoder of Pillow ever sees foreign bytes.
FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")
ORIENTATION = 0x0112
OPENED = [name for name in FORMATS if name != "MPO"]  # which Pillow makes of a JPEG with several frames
# What Pillow's decoders raise for bytes that are not what they claim; MemoryError is not among them.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
)


class PictureError(Exception):
    """Bytes that are not a picture we take; `reason` is the class it is counted under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def check_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode a picture in full and return it upright, with its hashes.

    Arguments: the encoded bytes; the most pixels (width × height) it may have, looked at before anything is decoded.
    Returns: the picture with the bytes as given, or, if its EXIF orientation is not 1, rewritten upright (JPEG at
    quality 95, anything else as PNG).
    Raises PictureError: empty | not-a-picture | too-large | too-small | too-thin | truncated | damaged.
    """
    picture, orientation = _decode(data, max_pixels)
    suffix = FORMATS[picture.format or ""]
    if orientation != 1:
        picture, data, suffix = _upright(picture, suffix)
    return Picture(
        data=data,
        format=suffix,
        width=picture.width,
        height=picture.height,
        sha256=hashlib.sha256(data).hexdigest(),
        phash=perceptual_hash(picture),
    )


def open_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A decoded picture, upright, in its own mode (not turned into RGB). Raises PictureError like `check_picture`."""
    picture, orientation = _decode(data, max_pixels)
    return ImageOps.exif_transpose(picture) if orientation != 1 else picture


def _decode(data: bytes, max_pixels: int) -> tuple[Image.Image, int]:
    """The picture's first frame, loaded, and the orientation it was stored with."""
    if not data:
        raise PictureError("empty", "0 bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks about odd metadata; pixels are bounded below
        try:
            picture = Image.open(io.BytesIO(data), formats=OPENED)
        except Image.DecompressionBombError as error:
            raise PictureError("too-large", str(error)) from error
        except Image.UnidentifiedImageError as error:
            reason = "truncated" if data.startswith(SIGNATURES) else "not-a-picture"
            raise PictureError(reason, f"{len(data)} bytes that start with {data[:16]!r}") from error
        except DECODER_ERRORS as error:
            raise PictureError(_reason(error), f"{len(data)} bytes: {_said(error)}") from error
        _check_size(picture.width, picture.height, max_pixels)
        orientation = _orientation(picture)
        try:
            picture.load()
        except DECODER_ERRORS as error:
            detail = f"{picture.format} of {picture.width}×{picture.height}: {_said(error)}"
            raise PictureError(_reason(error), detail) from error
    return picture, orientation


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PictureError("too-large", f"{width}×{height} pixels, at most {max_pixels:,} are taken")
    if width * height <= 1:
        raise PictureError("too-small", f"{width}×{height} pixels: a tracking pixel, not a picture")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise PictureError("too-thin", f"{width}×{height} pixels, the sides may differ by a factor of {MAX_RATIO}")


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or the EXIF cannot be read. Asked before loading, because
    Pillow's TIFF reader turns the picture as it loads."""
    try:
        value = picture.getexif().get(ORIENTATION, 1)
    except DECODER_ERRORS:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(picture: Image.Image, suffix: str) -> tuple[Image.Image, bytes, str]:
    """The picture turned upright and encoded anew, its metadata left behind."""
    turned = ImageOps.exif_transpose(picture)
    out = io.BytesIO()
    if suffix == "jpg" and turned.mode in ("L", "RGB", "CMYK"):
        turned.save(out, "JPEG", quality=95, subsampling=0, exif=b"")
    else:
        suffix = "png"
        if turned.mode not in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"):
            turned = turned.convert("RGB")
        turned.save(out, "PNG", exif=b"")
    return turned, out.getvalue(), suffix


def _cosines() -> np.ndarray:
    """The 8 lowest rows of the 32-point DCT-II, [8, 32]."""
    places = np.arange(32) + 0.5
    return np.cos(np.pi / 32 * np.arange(8)[:, None] * places[None, :])


_COSINES = _cosines()


def perceptual_hash(picture: Image.Image) -> int:
    """pHash, 64 bits unsigned: which of the 8×8 lowest frequencies of the picture in grey at 32×32 exceed their median.

    The picture is first reduced by a whole factor: about five times quicker, and the hash looks at coarse shapes alone.
    """
    factor = max(1, min(picture.size) // 64)
    if picture.mode in ("1", "P", "PA"):
        picture = picture.convert("RGB")
    grey = picture.reduce(factor).convert("L").resize((32, 32), Image.Resampling.BILINEAR)
    frequencies = _COSINES @ np.asarray(grey, np.float64) @ _COSINES.T
    # Rounded, so that noise of the last digits in a flat picture cannot turn a bit.
    frequencies = np.round(frequencies, 3)
    bits = (frequencies > np.median(frequencies)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _reason(error: Exception) -> str:
    return "truncated" if "truncated" in str(error).lower() or isinstance(error, EOFError) else "damaged"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
