"""Pillow's bilinear resampling onto a canvas of crops, bit for bit, compiled: half the time, and no copy after it.

Pillow resizes in two passes, one along each side, and rounds to bytes after each (its `src/libImaging/Resample.c`):
weights are fixed-point numbers of 22 bits, made of doubles. The same is done here, from the four bytes of a pixel as
Pillow holds it; the second pass writes planes of colours into the crops. `tests/unit/test_resample.py` holds it against
Pillow, and each process does once before it is used.
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
def separate(row: NDArray[np.uint8], red: NDArray[np.uint8], green: NDArray[np.uint8], blue: NDArray[np.uint8]) -> None:
    """A row's pixels, four bytes each, as three rows of one colour each."""
    for place in range(len(red)):
        red[place], green[place], blue[place] = row[4 * place], row[4 * place + 1], row[4 * place + 2]


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
    red: NDArray[np.uint8],
    green: NDArray[np.uint8],
    blue: NDArray[np.uint8],
) -> None:
    """Pixels of one row of the pass along the width.

    row: as `spread` made it, with a pixel of nothing at its end. pairs: whether no pixel is made of more than two.
    """
    low, mask = np.uint64(HALF), np.uint64(255)
    both = low | (low << np.uint64(32))
    for place in range(len(red)):
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
        red[place] = (two >> np.uint64(BITS)) & mask
        green[place] = (two >> np.uint64(BITS + 32)) & mask
        blue[place] = (third >> np.uint64(BITS)) & mask


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
    [crops, 3, size, size], row by row. lying: along the height first, as for tall pictures."""
    size = out.shape[2]
    high, across = source.shape[0], source.shape[1] // 4
    as_it_is = high == height and across == width
    by_row, row_counts, row_weights = weights(high, height)
    by_column, column_counts, column_weights = weights(across, width)
    pairs = column_counts.max() <= 2
    line = np.zeros(2 * across + 2, np.uint64)
    # What the second pass reads: of the first one row at a time, or planes of all.
    flat = np.empty(4 * across, np.uint8)
    between = np.empty((3, 0 if lying or as_it_is else high, width), np.uint8)
    for number in range(between.shape[1]):
        spread(source[number], line)
        red, green, blue = between[0, number], between[1, number], between[2, number]
        mix_columns(line, by_column, column_counts, column_weights, pairs, red, green, blue)
    for place in range(out.shape[0] // columns * size):
        number = place - top
        inside = 0 <= number < height
        if inside and lying and not as_it_is:
            mix_rows(source, by_row[number], row_counts[number], row_weights[number], 0, flat)
            spread(flat, line)
        for column in range(columns):
            crop = out[(place // size) * columns + column]
            begin = min(max(left - column * size, 0), size)
            end = min(max(left + width - column * size, begin), size) if inside else begin
            for plane in range(3):
                crop[plane, place % size, :begin] = WHITE
                crop[plane, place % size, end:] = WHITE
            if begin == end:
                continue
            start, stop = column * size + begin - left, column * size + end - left
            red = crop[0, place % size, begin:end]
            green = crop[1, place % size, begin:end]
            blue = crop[2, place % size, begin:end]
            if as_it_is:
                separate(source[number, 4 * start : 4 * stop], red, green, blue)
            elif lying:
                mine = slice(start, stop)
                counts, share = column_counts[mine], column_weights[mine]
                mix_columns(line, by_column[mine], counts, share, pairs, red, green, blue)
            else:
                for plane in range(3):
                    part = crop[plane, place % size, begin:end]
                    mix_rows(between[plane], by_row[number], row_counts[number], row_weights[number], start, part)


def resample(pixels: NDArray[np.uint32], place: Canvas, out: NDArray[np.uint8]) -> None:
    """Resize a picture onto its canvas, where it has not that size yet, and cut that into crops.

    Arguments: uint32 [height, width], pixels as Pillow holds them; where they go; uint8 [crops, 3, size, size].
    """
    size = (place.resized_width, place.resized_height)
    fill(pixels.view(np.uint8), *size, place.left, place.top, place.columns, place.transposed, out)
