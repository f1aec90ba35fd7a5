"""Pictures turned upright, as their EXIF says; a large one by way of a file, so that it never stands there twice."""

import tempfile

from PIL import Image

LARGE_PIXELS = 12_000_000
_STRIP_PIXELS = 400_000
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)  # rows of the upright picture are columns of the stored one
_FROM_THE_END = (3, 4, 7, 8)  # its first row is the last row or column


def upright(picture: Image.Image, orientation: int) -> Image.Image:
    """A decoded picture turned by its EXIF orientation, 1 to 8.

    The memory of the one that is given may be let go: it is not to be used any more.
    """
    if orientation == 1:
        return picture
    if picture.width * picture.height < LARGE_PIXELS or picture.mode not in ("RGB", "RGBA", "CMYK"):
        return picture.transpose(_TURNS[orientation])
    return _by_way_of_a_file(picture, orientation)


def _by_way_of_a_file(picture: Image.Image, orientation: int) -> Image.Image:
    mode, (width, height) = picture.mode, picture.size
    across, length = (height, width) if orientation in _ON_ITS_SIDE else (width, height)
    info, rows = picture.info, max(1, _STRIP_PIXELS // across)
    with tempfile.TemporaryFile() as file:
        for top in range(0, length, rows):
            ends = top, min(top + rows, length)
            first, last = (length - ends[1], length - ends[0]) if orientation in _FROM_THE_END else ends
            box = (first, 0, last, height) if orientation in _ON_ITS_SIDE else (0, first, width, last)
            file.write(picture.crop(box).transpose(_TURNS[orientation]).tobytes())
        picture.close()
        file.seek(0)
        turned = Image.new(mode, (across, length))
        turned.info = info
        for top in range(0, length, rows):
            size = across, min(rows, length - top)
            strip = Image.frombytes(mode, size, file.read(size[0] * size[1] * len(mode)))
            turned.paste(strip, (0, top))
    return turned
