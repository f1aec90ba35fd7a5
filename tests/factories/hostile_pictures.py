"""Pictures that are none, or that are meant to hurt whoever opens them; each under a name of its own."""

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image


def drawn(width: int = 300, height: int = 200, mode: str = "RGB") -> Image.Image:
    """A picture of coarse noise."""
    pixels = np.random.default_rng(width).integers(0, 255, (height // 10, width // 10, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height)).convert(mode)


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """A picture's bytes."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, kind: int = 2) -> bytes:
    """A PNG of these chunks between its header and its end."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def hostile() -> Iterator[tuple[str, bytes, str]]:
    """Name, bytes, and the reasons of which one is given, separated by a space; "ok" for what is taken."""
    photo = encoded(drawn(), quality=90)
    bomb = zlib.compress(bytes(200_000_000), 9)
    pixels = chunk(b"IDAT", zlib.compress(bytes(91 * 30)))
    yield "empty", b"", "empty"
    yield "html", b"<!DOCTYPE html><html><body>404</body></html>", "not-a-picture"
    yield "json", b'{"error": "not found"}', "not-a-picture"
    yield "nulls", bytes(5000), "not-a-picture"
    yield "noise", np.random.default_rng(0).bytes(5000), "not-a-picture"
    yield "svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "not-a-picture"
    entity = b"<?xml version='1.0'?><!DOCTYPE s [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>"
    yield "svg-entity", entity + b"<svg xmlns='http://www.w3.org/2000/svg'><text>&x;</text></svg>", "not-a-picture"
    yield "postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "not-a-picture"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(50_000_000))
    yield "zip-bomb", packed.getvalue(), "not-a-picture"
    yield "gzip-bomb", gzip.compress(bytes(50_000_000)), "not-a-picture"
    yield "gzip-of-a-jpeg", gzip.compress(photo), "not-a-picture"
    yield "one-pixel", encoded(drawn(10, 10).resize((1, 1)), "PNG"), "too-small"
    yield "thin", encoded(drawn(1010, 10), "PNG"), "too-thin"
    yield "png-60000", png(60_000, 60_000, chunk(b"IDAT", bomb[:100_000])), "too-large"
    yield "png-widest", png(2**31 - 1, 2**31 - 1, pixels), "too-large damaged not-a-picture truncated"
    yield "png-no-size", png(0, 0, pixels), "damaged not-a-picture too-small truncated"
    yield "png-bomb-of-data", png(30, 30, chunk(b"IDAT", bomb)), "ok damaged truncated"
    yield "png-bomb-of-text", png(30, 30, chunk(b"zTXt", b"a\0\0" + bomb), pixels), "ok damaged truncated"
    yield "png-bomb-of-itxt", png(30, 30, chunk(b"iTXt", b"a\0\1\0\0\0" + bomb), pixels), "ok damaged truncated"
    yield "png-bomb-of-profile", png(30, 30, chunk(b"iCCP", b"a\0\0" + bomb), pixels), "ok damaged truncated"
    noise = encoded(drawn(), "PNG")
    yield "png-scrambled", noise[:5000] + bytes(3000) + noise[8000:], "damaged truncated"
    yield "png-no-data", png(30, 30), "damaged truncated"
    yield "jpeg-only-header", photo[:20], "truncated damaged not-a-picture"
    yield "jpeg-60000", photo.replace(struct.pack(">HH", 200, 300), struct.pack(">HH", 60_000, 60_000)), "too-large"
    yield "jpeg-claims-more", photo.replace(struct.pack(">HH", 200, 300), struct.pack(">HH", 400, 300)), "truncated"
    yield "jpeg-half-grey", photo[: len(photo) // 2] + b"\xff\xd9", "truncated"
    yield "jpeg-progressive-half", encoded(drawn(), progressive=True)[:5000] + b"\xff\xd9", "truncated damaged"
    for tenth in range(1, 10):
        yield f"jpeg-{tenth}-tenths", photo[: len(photo) * tenth // 10], "truncated damaged not-a-picture"
    yield "jpeg-behind-html", b"<html>" + photo, "not-a-picture"
    yield "jpeg-and-more", photo + b"<script>" * 1000, "ok"
    yield "gif-cut", encoded(drawn(), "GIF")[:2000], "truncated damaged"
    yield "gif-huge-screen", b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + bytes(20), "too-large truncated damaged"
    yield "webp-cut", encoded(drawn(), "WEBP")[:1000], "truncated damaged not-a-picture"
    yield "bmp-negative", encoded(drawn(), "BMP")[:18] + struct.pack("<ii", -5, -5) + bytes(100), "damaged truncated"
    tiff = encoded(drawn(), "TIFF")
    yield "tiff-cut", tiff[: len(tiff) // 2], "truncated damaged"
    yield "tiff-loop", b"II*\0\x08\0\0\0\0\0\x08\0\0\0" + bytes(50), "damaged truncated not-a-picture"
    frames = [drawn(60, 40, "P"), drawn(80, 40, "P").crop((0, 0, 60, 40))]
    yield "gif-animated", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:] * 20), "ok"
    yield "webp-animated", encoded(drawn(60, 40), "WEBP", save_all=True, append_images=[drawn(60, 40)]), "ok"
    yield "jpeg-cmyk", encoded(drawn(mode="CMYK")), "ok"
    yield "jpeg-grey", encoded(drawn(mode="L")), "ok"
    yield "png-16-bit", encoded(Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30) * 70), "PNG"), "ok"
    yield "png-palette", encoded(drawn(mode="P"), "PNG", transparency=3), "ok"
    yield "png-1-bit", encoded(drawn(mode="1"), "PNG"), "ok"
    yield "tiff-float", encoded(drawn(mode="F"), "TIFF"), "ok"
    yield "bmp", encoded(drawn(), "BMP"), "ok"
    yield "jpeg-bad-exif", encoded(drawn(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(40)), "ok"
