"""Bytes of other people → a picture that is proved to decode and stands upright."""

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import pyarrow as pa
import simplejpeg
from PIL import (  # noqa: F401
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from data.jpegs import DamagedJpeg, Frame, plain_frame, prove
from data.looks import Small, look_at, reduced
from data.schema import Picture
from data.taking import KEEP, MAX_PIXELS, SIGNATURES, Rewriting
from data.turning import upright

MAX_RATIO = 100  # longer side to shorter; beyond it the smallest canvas has no pixel left for the shorter side
QUALITY = 95  # of a JPEG that has to be encoded anew
# Named with their plugins above, so that no other decoder of Pillow ever sees foreign bytes.
FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}
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
    TypeError,
    AttributeError,
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


Room = Callable[[int], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """A picture that decodes, before anybody looked at what it shows."""

    data: bytes
    """Encoded, upright; as found or rewritten."""
    format: str
    """As of `Picture`."""
    width: int
    height: int
    small: Small


def check_picture(data: bytes, max_pixels: int = MAX_PIXELS, rewriting: Rewriting = KEEP) -> Picture:
    """Decode a picture in full and return it upright, with its hashes; arguments and errors as of `prove_picture`."""
    proved = prove_picture(data, max_pixels, rewriting)
    phash, look = look_at(proved.small)
    return Picture(
        data=proved.data,
        format=proved.format,
        width=proved.width,
        height=proved.height,
        sha256=hashlib.sha256(proved.data).hexdigest(),
        phash=phash,
        look=look,
    )


def prove_picture(
    data: bytes,
    max_pixels: int = MAX_PIXELS,
    rewriting: Rewriting = KEEP,
    room: Room = nullcontext,
) -> Proved:
    """Decode a picture in full and return it upright.

    Arguments: the encoded bytes; the most pixels (width × height) it may have, looked at before anything is decoded;
    what is encoded anew besides pictures whose EXIF orientation is not 1; entered with the number of pixels while they
    are decoded, so that a caller can let large ones wait for each other.
    Returns: the picture with the bytes as given, or encoded anew without its metadata (JPEG at quality 95 unless told
    otherwise, anything else as PNG).
    Raises PictureError: empty | not-a-picture | too-large | too-small | too-thin | truncated | damaged.
    """
    frame = plain_frame(data) if rewriting == KEEP else None
    if frame is not None:
        _check_size(frame.width, frame.height, max_pixels)
        with room(frame.width * frame.height):
            small = _proved(data, frame)
        if small is not None:
            return Proved(data=data, format="jpg", width=frame.width, height=frame.height, small=small)
    picture = _open(data, max_pixels)
    with room(picture.width * picture.height):
        return _checked(data, picture, rewriting)


def _checked(data: bytes, picture: Image.Image, rewriting: Rewriting) -> Proved:
    orientation = _orientation(picture)
    suffix = FORMATS[picture.format or ""]
    small, frame = None, None
    if suffix == "jpg" and picture.mode in ("L", "RGB"):
        frame = Frame(picture.width, picture.height, picture.mode == "L")
    if orientation == 1 and not _rewritten(picture, suffix, rewriting):
        _check_sums(data, suffix)
        small = _proved(data, frame) if frame else None
        if small is None:
            _loaded(picture)
    else:
        _loaded(picture)
        _check_sums(data, suffix)
        if frame:
            _proved(data, frame)
        picture, data, suffix = _encoded(picture, suffix, rewriting)
    return Proved(data=data, format=suffix, width=picture.width, height=picture.height, small=small or reduced(picture))


def open_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A decoded picture, upright, in its own mode (not turned into RGB). Raises PictureError like `check_picture`."""
    frame = plain_frame(data)
    if frame is not None and not frame.grey:
        _check_size(frame.width, frame.height, max_pixels)
        decoded = _decoded_at_once(data)
        if decoded is not None:
            return decoded
    picture = _open(data, max_pixels)
    orientation = _orientation(picture)
    if frame is None and (picture.format, picture.mode, orientation) == ("JPEG", "RGB", 1):
        return _decoded_at_once(data) or _loaded(picture)
    return _loaded(picture) if orientation == 1 else ImageOps.exif_transpose(_loaded(picture))


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The picture's first frame, its size checked, nothing decoded."""
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
    return picture


def _decoded_at_once(data: bytes) -> Image.Image | None:
    """A JPEG in colour, all rows at once: the pixels that Pillow has from the same library row by row, up to a fifth
    sooner. None where the library remarks on anything: what Pillow makes of that counts."""
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGBX")
    except ValueError:
        return None
    height, width, _ = pixels.shape
    return Image.fromarrow(pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 4), "RGB", (width, height))


def _loaded(picture: Image.Image) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture.load()
        return picture
    except DECODER_ERRORS as error:
        detail = f"{picture.format} of {picture.width}×{picture.height}: {_said(error)}"
        raise PictureError(_reason(error), detail) from error


def _proved(data: bytes, frame: Frame) -> Small | None:
    """As `data.jpegs.prove`. Raises PictureError: truncated | damaged."""
    try:
        return prove(data, frame)
    except DamagedJpeg as error:
        raise PictureError(error.reason, error.detail) from error


def _check_sums(data: bytes, suffix: str) -> None:
    """Raise PictureError (damaged) for a PNG whose pixels do not add up to its checksums, which Pillow leaves out."""
    if suffix != "png":
        return
    start = 8
    while start + 12 <= len(data):
        length, kind = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        end = start + 8 + length
        if kind == b"IEND" or end + 4 > len(data):
            return  # cut short: decoding says so
        if kind in (b"PLTE", b"IDAT") and zlib.crc32(memoryview(data)[start + 4 : end]) != int.from_bytes(
            data[end : end + 4], "big"
        ):
            raise PictureError("damaged", f"PNG: the {kind.decode()} chunk at byte {start:,} has another checksum")
        start = end + 4


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


def _rewritten(picture: Image.Image, suffix: str, rewriting: Rewriting) -> bool:
    larger = rewriting.max_side is not None and max(picture.size) > rewriting.max_side
    return larger or (rewriting.quality is not None and suffix == "jpg")


def _encoded(picture: Image.Image, suffix: str, rewriting: Rewriting) -> tuple[Image.Image, bytes, str]:
    """The picture upright, no larger than allowed, and encoded anew; its metadata is left behind."""
    picture = upright(picture, _orientation(picture))  # asked again: loading a TIFF has turned it
    if rewriting.max_side is not None and max(picture.size) > rewriting.max_side:
        if picture.mode in ("1", "P", "PA"):
            picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
        scale = rewriting.max_side / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    # Comments, profiles and what else Pillow would carry over; a place in a colour table is part of the picture.
    picture.info = {name: value for name, value in picture.info.items() if name == "transparency"}
    out = io.BytesIO()
    if suffix == "jpg" and picture.mode in ("L", "RGB", "CMYK"):
        quality = rewriting.quality or QUALITY
        # Colours at full detail at the quality of a picture that was only turned, else as encoders do by themselves.
        picture.save(out, "JPEG", quality=quality, subsampling=0 if quality >= QUALITY else -1, exif=b"")
    else:
        suffix = "png"
        if picture.mode not in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"):
            picture = picture.convert("RGB")
        picture.save(out, "PNG", exif=b"")
    return picture, out.getvalue(), suffix


def _reason(error: Exception) -> str:
    return "truncated" if "truncated" in str(error).lower() or isinstance(error, EOFError) else "damaged"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
