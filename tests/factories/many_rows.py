"""A catalogue of very many rows, each with a picture of its own that is no larger than a kilobyte."""

import struct
import zlib
from pathlib import Path

import numpy as np

MAPPING = """
key: sku
product: product
pictures: [image]
prompt: "<|image_1|>\\nWhat is this?"
answer: "{title}, {price:.2f}"
fields:
  title: {column: title, type: text}
  price: {column: price, type: number}
split: {fractions: {train: 0.9, validation: 0.05, test: 0.05}}
"""
SIDE = 14  # pixels
ROWS_OF_PRODUCT = 4
FOLDER_PICTURES = 1000
WORDS = ("linen", "cotton", "wool", "silk", "red", "navy", "green", "shirt", "coat", "scarf", "bag", "skirt", "belt")


def write_catalogue(folder: Path, rows: int) -> list[str]:
    """Write rows.csv, mapping.yaml and the pictures; returns the arguments of a build of it, --output aside."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mapping.yaml").write_text(MAPPING)
    with (folder / "rows.csv").open("w") as lines:
        lines.write("sku,product,image,title,price\n")
        for first in range(0, rows, FOLDER_PICTURES):
            random = np.random.default_rng(first)
            count = min(FOLDER_PICTURES, rows - first)
            inside = folder / f"pictures/{first // FOLDER_PICTURES:04d}"
            inside.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
            words = random.integers(0, len(WORDS), (count, 4))
            prices = random.integers(100, 100_000, count)
            for number in range(count):
                (inside / f"{number:03d}.png").write_bytes(png(pixels[number]))
                row = first + number
                title = " ".join(WORDS[word] for word in words[number])
                name = f"{inside.relative_to(folder)}/{number:03d}.png"
                price = f"{prices[number] / 100:.2f}"
                lines.write(f"sku-{row},product-{row // ROWS_OF_PRODUCT},{name},{title} {row},{price}\n")
    return ["--preset", str(folder / "mapping.yaml"), "--source", str(folder / "rows.csv")]


def png(pixels: np.ndarray) -> bytes:
    """A PNG of pixels [height, width, 3]; far quicker than by a library, as there are so many of them."""
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 3 * width), np.uint8)
    lines[:, 1:] = pixels.reshape(height, -1)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines.tobytes(), 0)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
