"""Pillow's bilinear resampling onto a canvas of crops, bit for bit, compiled: half the time, and no copy after it.

Pillow resizes in two passes, one along each side, and rounds to bytes after each (its `src/libImaging/Resample.c`):
weights are fixed-point numbers of 22 bits, made of doubles. The same is done here, on the four bytes of a pixel as
Pillow holds it; the second pass writes into the crops. `tests/unit/test_resample.py` holds it against Pillow, and each
process does once before it is used.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from data.geometry import Canvas

BITS = 22
HALF = 1 << (BITS - 1)
WHITE = np.uint8(255)


def compiled(function: Any) -> Any:
    """A function as machine code, kept on the disk for the next process where a folder for that can be written to."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba found no such folder
        return njit(nogil=True)(function)


@compiled
def weights(before: int, after: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Which pixels of a side of `before` make up each of `after`, and how much they count.

    Returns: the first of them and how many there are, int32 [after] each; weights of 22 bits, int32 [after, taps].
    """
    scale = before / after
    reach = max(scale, 1.0)
    taps = int(np.ceil(reach)) * 2 + 1
    first = np.zeros(after, np.int32)
    counts = np.zeros(after, np.int32)
    fixed = np.zeros((after, taps), np.int32)
    shares = np.zeros(taps)
    for place in range(after):
        center = (place + 0.5) * scale
        start = max(int(center - reach + 0.5), 0)
        count = min(int(center + reach + 0.5), before) - start
        total = 0.0
        for tap in range(count):
            away = abs((tap + start - center + 0.5) * (1.0 / reach))
            shares[tap] = 1.0 - away if away < 1.0 else 0.0
            total += shares[tap]
        for tap in range(count):
            share = shares[tap] / total if total != 0.0 else shares[tap]
            fixed[place, tap] = int(0.5 + share * (1 << BITS))
        # What counts nothing is not looked at: of two neighbours there are mostly two left.
        while count > 1 and fixed[place, count - 1] == 0:
            count -= 1
        while count > 1 and fixed[place, 0] == 0:
            start, count = start + 1, count - 1
            for tap in range(count):
                fixed[place, tap] = fixed[place, tap + 1]
            fixed[place, count] = 0
        first[place], counts[place] = start, count
    return first, counts, fixed


@compiled
def mix_rows(
    source: NDArray[np.uint8], first: int, count: int, fixed: NDArray[np.int32], begin: int, out: NDArray[np.uint8]
) -> None:
    """Bytes `begin` and on of one row of the pass along the height, as many as `out` has."""
    size = len(out)
    if count == 2:
        upper, lower = source[first, begin : begin + size], source[first + 1, begin : begin + size]
        one, other = fixed[0], fixed[1]
        for place in range(size):
            out[place] = (np.int32(HALF) + one * np.int32(upper[place]) + other * np.int32(lower[place])) >> BITS
        return
    # Some hundred bytes at a time, which stay where the processor has them at hand.
    sums = np.empty(512, np.int32)
    for at in range(0, size, 512):
        end = min(at + 512, size)
        sums[:] = HALF
        for tap in range(count):
            row, weight = source[first + tap, begin + at : begin + end], fixed[tap]
            for place in range(end - at):
                sums[place] += weight * np.int32(row[place])
        for place in range(end - at):
            out[at + place] = sums[place] >> BITS


@compiled
def spread(row: NDArray[np.uint8], out: NDArray[np.uint64]) -> None:
    """A row's pixels as two numbers of two colours each, 32 bits a colour: room for both products at once."""
    for place in range(len(row) // 4):
        out[2 * place] = np.uint64(row[4 * place]) | (np.uint64(row[4 * place + 1]) << np.uint64(32))
        out[2 * place + 1] = np.uint64(row[4 * place + 2])


@compiled
def mix_columns(
    row: NDArray[np.uint64],
    first: NDArray[np.int32],
    counts: NDArray[np.int32],
    fixed: NDArray[np.int32],
    pairs: bool,
    out: NDArray[np.uint32],
) -> None:
    """Pixels of one row of the pass along the width.

    row: as `spread` made it, with a pixel of nothing at its end. pairs: whether no pixel is made of more than two.
    """
    low, mask = np.uint64(HALF), np.uint64(255)
    both = low | (low << np.uint64(32))
    for place in range(len(out)):
        at = 2 * first[place]
        if pairs:
            one, other = np.uint64(fixed[place, 0]), np.uint64(fixed[place, 1])
            two = both + one * row[at] + other * row[at + 2]
            third = low + one * row[at + 1] + other * row[at + 3]
        else:
            two, third = both, low
            for tap in range(counts[place]):
                weight = np.uint64(fixed[place, tap])
                two += weight * row[at + 2 * tap]
                third += weight * row[at + 2 * tap + 1]
        red = (two >> np.uint64(BITS)) & mask
        green = (two >> np.uint64(BITS + 32)) & mask
        blue = (third >> np.uint64(BITS)) & mask
        out[place] = red | (green << np.uint64(8)) | (blue << np.uint64(16))


@compiled
def fill(
    source: NDArray[np.uint8],
    width: int,
    height: int,
    left: int,
    top: int,
    columns: int,
    lying: bool,
    out: NDArray[np.uint8],
) -> None:
    """Resize `source` [h, 4 w] to width × height, put it at (left, top) of a white canvas, and cut that into `out`
    [crops, size, 4 size], row by row. lying: along the height first, as for tall pictures."""
    size = out.shape[1]
    high, across = source.shape[0], source.shape[1] // 4
    by_row, row_counts, row_weights = weights(high, height)
    by_column, column_counts, column_weights = weights(across, width)
    pairs = column_counts.max() <= 2
    line = np.zeros(2 * across + 2, np.uint64)
    # What the second pass reads: of the first one row at a time, or all.
    between = np.empty((1, 4 * across) if lying else (high, 4 * width), np.uint8)
    if not lying:
        for number in range(high):
            spread(source[number], line)
            mix_columns(line, by_column, column_counts, column_weights, pairs, between[number].view(np.uint32))
    for place in range(out.shape[0] // columns * size):
        number = place - top
        inside = 0 <= number < height
        if inside and lying:
            mix_rows(source, by_row[number], row_counts[number], row_weights[number], 0, between[0])
            spread(between[0], line)
        for column in range(columns):
            crop = out[(place // size) * columns + column, place % size]
            begin = min(max(left - column * size, 0), size)
            end = min(max(left + width - column * size, begin), size) if inside else begin
            crop[: 4 * begin] = WHITE
            crop[4 * end :] = WHITE
            if begin == end:
                continue
            start, stop = column * size + begin - left, column * size + end - left
            part = crop[4 * begin : 4 * end]
            if lying:
                mine = slice(start, stop)
                counts, share = column_counts[mine], column_weights[mine]
                mix_columns(line, by_column[mine], counts, share, pairs, part.view(np.uint32))
            else:
                mix_rows(between, by_row[number], row_counts[number], row_weights[number], 4 * start, part)


def resample(pixels: NDArray[np.uint32], place: Canvas, out: NDArray[np.uint8]) -> None:
    """Resize a picture onto its canvas and cut that into crops.

    Arguments: uint32 [height, width], pixels as Pillow holds them; where they go; uint8 [crops, size, size, 4].
    """
    crops = out.reshape((len(out), out.shape[1], 4 * out.shape[2]), copy=False)
    size = (place.resized_width, place.resized_height)
    fill(pixels.view(np.uint8), *size, place.left, place.top, place.columns, place.transposed, crops)
