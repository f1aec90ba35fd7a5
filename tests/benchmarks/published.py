"""The published processor's picture steps, written anew from their description, to measure against.

Each step makes its own result, as there: one batch of one picture is stacked at the end.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

CROP = 336
# image_mean and image_std of the published preprocessor_config.json.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def published_canvas(picture: Image.Image, num_crops: int) -> Image.Image:
    """The picture in RGB, resized and padded with white to whole crops, in its own orientation."""
    picture = picture.convert("RGB")
    tall = picture.width < picture.height
    if tall:
        picture = picture.transpose(Image.Transpose.TRANSPOSE)
    ratio = picture.width / picture.height
    scale = 1
    while (scale + 1) * math.ceil((scale + 1) / ratio) <= num_crops:
        scale += 1
    width = CROP * scale
    height = int(width / ratio)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    padded_height = math.ceil(height / CROP) * CROP
    padded = Image.new("RGB", (width, padded_height), (255, 255, 255))
    padded.paste(picture, (0, (padded_height - height) // 2))
    return padded.transpose(Image.Transpose.TRANSPOSE) if tall else padded


def published_inputs(picture: Image.Image, num_crops: int) -> tuple[Tensor, tuple[int, int]]:
    """One picture as the published processor hands it to the model.

    Arguments: a PIL picture of any mode; the largest number of crops.
    Returns: normalised float32 [num_crops + 1, 3, 336, 336], the global view first, then the crops row by row, then
    crops of zeros; (rows, columns) of the crops.
    """
    canvas = published_canvas(picture, num_crops)
    pixels = to_normalised(canvas)
    view = F.interpolate(pixels[None], size=(CROP, CROP), mode="bicubic")
    rows, columns = canvas.height // CROP, canvas.width // CROP
    crops = pixels.reshape(1, 3, rows, CROP, columns, CROP).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, CROP, CROP)
    crops = torch.cat((view, crops))
    if len(crops) < num_crops + 1:
        crops = torch.cat((crops, torch.zeros(num_crops + 1 - len(crops), 3, CROP, CROP)))
    return torch.stack((crops,))[0], (rows, columns)


def to_normalised(canvas: Image.Image) -> Tensor:
    """Pixels float32 [3, height, width]: scaled to 0 … 1, mean taken off, divided by the deviation.

    Neither of the two steps works in place: as torchvision's `ToTensor` and `Normalize`.
    """
    pixels = torch.from_numpy(np.array(canvas, np.uint8)).permute(2, 0, 1).contiguous()
    scaled = pixels.to(torch.float32).div(255)
    return scaled.clone().sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])
