"""Copies of a picture as they turn up in catalogues: encoded anew, resized, with other tones and colours."""

import io
import random

from PIL import Image, ImageEnhance, ImageOps

FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


def upright(data: bytes) -> Image.Image:
    """A picture in RGB, upright, what is transparent on white."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        ground = Image.new("RGB", picture.size, "white")
        ground.paste(picture, mask=picture.getchannel("A"))
        return ground
    return picture.convert("RGB")


def copy_of(picture: Image.Image, rng: random.Random) -> bytes:
    """A JPEG (quality 30 to 95) of the picture at 0.3 to 2 times its size, recoloured in one way or in all."""
    scale = rng.uniform(0.3, 2)
    copy = picture.resize([max(8, int(side * scale)) for side in picture.size], rng.choice(FILTERS))
    way = rng.choice(("brightness", "contrast", "gamma", "hue", "all"))
    if way in ("brightness", "all"):
        copy = ImageEnhance.Brightness(copy).enhance(rng.uniform(0.8, 1.2))
    if way in ("contrast", "all"):
        copy = ImageEnhance.Contrast(copy).enhance(rng.uniform(0.8, 1.2))
    if way in ("gamma", "all"):
        gamma = rng.uniform(0.8, 1.25)
        copy = copy.point([round(255 * (level / 255) ** gamma) for level in range(256)] * 3)
    if way in ("hue", "all"):
        turn = rng.randint(-5, 5)
        hue, saturation, value = copy.convert("HSV").split()
        hue = hue.point([(level + turn) % 256 for level in range(256)])
        copy = ImageEnhance.Color(Image.merge("HSV", (hue, saturation, value)).convert("RGB")).enhance(
            rng.uniform(0.85, 1.2)
        )
    out = io.BytesIO()
    copy.save(out, "JPEG", quality=rng.randint(30, 95))
    return out.getvalue()
