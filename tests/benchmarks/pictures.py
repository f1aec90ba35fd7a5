"""What benchmarks run on: photographs and the published tokenizer, or drawn pictures where there is no material."""

import io
from dataclasses import dataclass
from itertools import count as numbers
from itertools import islice
from pathlib import Path

from PIL import Image

from data.sample.draw import Format, draw_picture, picture_format
from data.sample.rows import draw_item
from tests.factories.small_shards import write_tokenizer

LONGER_SIDE = 533
"""Of most of the material's photographs; drawn pictures are made as large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """JPEG files."""

    kind: str
    """photographs or drawn pictures, for figures' names: one is not compared with the other"""
    files: tuple[bytes, ...]


def pictures(material: Path, most: int) -> Pictures:
    """The first photographs of material/clothing, or as many pictures of the sample catalogue."""
    photographs = sorted((material / "clothing" / "images").glob("train/*.jpg"))[:most]
    if photographs:
        return Pictures(kind="photographs", files=tuple(path.read_bytes() for path in photographs))
    items = (draw_item(0, number) for number in numbers())
    plain = (item for item in items if picture_format(0, item) == Format("jpg", "RGB"))
    files = tuple(resized(draw_picture(0, item), LONGER_SIDE) for item in islice(plain, most))
    return Pictures(kind="drawn pictures", files=files)


def resized(content: bytes, longer_side: int, quality: int = 90) -> bytes:
    """A picture whose longer side has so many pixels, as JPEG."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    factor = longer_side / max(picture.size)
    size = (round(picture.width * factor), round(picture.height * factor))
    out = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=quality)
    return out.getvalue()


def tokenizer_file(material: Path, folder: Path) -> Path:
    """The published tokenizer.json, or one of bytes and letters, which is written into `folder`."""
    published = material / "phi3v" / "tokenizer" / "tokenizer.json"
    return published if published.is_file() else write_tokenizer(folder / "tokenizer.json")
