"""Rows that are broken on purpose: which, how, and what stands in the file instead of a picture."""

from dataclasses import dataclass

from data.sample.rows import Item, draw_item, generator

# One row of every BLOCK is broken, always one of the block's last LATE, so that any number of rows from the start has
# fewer than one in twenty.
BLOCK = 25
LATE = 4
KINDS = (
    "missing",  # imageurl names a file that is not there
    "truncated",  # the file ends in the middle of the picture
    "html",  # the file holds a web page
    "empty",  # the file holds no byte
    "no_url",  # imageurl is empty
    "none_url",  # imageurl is the text None
    "duplicate",  # the whole row stands there a second time
    "copy",  # the whole row stands there a second time, with a copy of the picture under another name
)
# A duplicate stands at most so many rows behind what it repeats.
REACH = 200


@dataclass(frozen=True, slots=True)
class Broken:
    """How a row is broken; `of` is the row that a duplicate or a copy repeats."""

    row: int
    kind: str
    of: int | None = None


def broken(seed: int, number: int) -> Broken | None:
    """How row `number` of the sample of `seed` is broken, or None."""
    block, place = divmod(number, BLOCK)
    if place != BLOCK - LATE + int(generator(seed, block, 4).integers(LATE)):
        return None
    kind = KINDS[block % len(KINDS)]
    if kind not in ("duplicate", "copy"):
        return Broken(number, kind)
    rng = generator(seed, number, 5)
    while True:
        earlier = int(rng.integers(max(0, number - REACH), number))
        if broken(seed, earlier) is None:
            return Broken(number, kind, earlier)


def shown_item(seed: int, number: int) -> tuple[Item, Broken | None]:
    """What row `number` shows, which for a duplicate or a copy is an earlier row's item, and how it is broken."""
    fault = broken(seed, number)
    return draw_item(seed, number if fault is None or fault.of is None else fault.of), fault


def file_content(kind: str | None, picture: bytes) -> bytes | None:
    """What stands in the file of a row that is broken in this way (None: it is not); None: the row has no file."""
    if kind is None or kind == "copy":
        return picture
    if kind == "truncated":
        return picture[: len(picture) // 3]
    if kind == "html":
        return b"<!DOCTYPE html>\n<html><head><title>403 Forbidden</title></head><body>Access denied.</body></html>\n"
    return b"" if kind == "empty" else None
