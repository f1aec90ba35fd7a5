"""The published processor's picture steps and the model's, written anew from their description, to measure against.

Each picture step makes its own result, as there: one batch of one picture is stacked at the end.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from train.model import Phi3VForCausalLM

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


def published_states(
    model: Phi3VForCausalLM,
    input_ids: Tensor,
    pixel_values: Tensor,
    grid: tuple[int, int],
    where: Tensor | None = None,
) -> Tensor:
    """The final hidden states [1, T, hidden_size] of one sample with one picture.

    where: int64, the places of image tokens, if they are known; found in the ids otherwise.

    As published: every crop that `pixel_values` [num_crops + 1, 3, c, c] was filled up with goes through the tower, and
    through its last layer too, whose output is not used.
    """
    embedding = model.model.vision_embed_tokens
    tower = embedding.img_processor.vision_model
    states = [tower.pre_layrnorm(tower.embeddings(pixel_values.to(embedding.sub_GN.dtype)))]
    for layer in tower.encoder.layers:
        states.append(layer(states[-1], None))
    tower.post_layernorm(states[-1][:, 0])
    rows, columns = grid
    features = states[-2][: 1 + rows * columns, 1:]
    count, side, width = len(features), embedding.side, features.shape[-1]
    merged = features.view(count, side, 2, side, 2, width).transpose(2, 3).reshape(count, side, side, 4 * width)
    view, crops = merged[:1], merged[1:]
    canvas = crops.view(rows, columns, side, side, -1).transpose(1, 2).reshape(rows * side, columns * side, -1)
    sub, end = embedding.sub_GN[0], embedding.glb_GN[0]
    tokens = torch.cat(
        (
            torch.cat((canvas, sub.expand(rows * side, 1, -1)), dim=1).flatten(0, 1),
            end,
            torch.cat((view[0], sub.expand(side, 1, -1)), dim=1).flatten(0, 1),
        )
    )
    embeds = model.model.embed_tokens(input_ids.clamp(min=0))
    where = (input_ids[0] < 0).nonzero()[:, 0] if where is None else where
    embeds = embeds[0].index_copy(0, where, embedding.img_projection(tokens))[None]
    hidden, _, _ = model.model(inputs_embeds=embeds)
    return hidden
