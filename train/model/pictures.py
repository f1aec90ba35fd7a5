"""Pictures as they come to the model, in any of the agreed layouts, brought into one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.model.transfer import moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """The pictures of a batch or a pack, without any padding crop."""

    crops: Tensor
    """bytes or normalised floats [K, 3, c, c]: each picture's own crops, row by row"""
    views: Tensor | None
    """[N, 3, c, c], the global views where they were given"""
    grids: tuple[tuple[int, int], ...]
    """(rows, columns) of each of the N pictures"""


def read_pictures(
    pixel_values: Tensor | None,
    image_sizes: Tensor | Sequence[Sequence[int]] | None,
    crop_size: int,
    device: torch.device,
) -> Pictures | None:
    """Tell apart what `pixel_values` may be; None without pictures.

    Layouts: [K, 3, c, c], the own crops of all pictures (K is their number), or of one picture with its global view
    first; [N, K, 3, c, c], a picture a row, the global view first, filled up with anything; or without the global
    views, where K is the largest number of own crops.
    Raises ValueError where sizes are no multiples of the crop size or numbers do not match.
    """
    if pixel_values is None:
        return None
    if image_sizes is None:
        raise ValueError("pixel_values: needs image_sizes, the padded height and width of each picture")
    given = image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
    sizes = [[int(edge) for edge in size] for size in given]
    for number, size in enumerate(sizes, start=1):
        if len(size) != 2 or min(size) < crop_size or any(edge % crop_size for edge in size):
            raise ValueError(
                f"image_sizes: picture {number} has {size}; needs height and width in whole crops of {crop_size} pixels"
            )
    grids = tuple((height // crop_size, width // crop_size) for height, width in sizes)
    if tuple(pixel_values.shape[-3:]) != (3, crop_size, crop_size) or pixel_values.dim() not in (4, 5):
        raise ValueError(
            f"pixel_values: found shape {tuple(pixel_values.shape)}; needs [crops, 3, {crop_size}, {crop_size}], or "
            f"[pictures, crops, 3, {crop_size}, {crop_size}]"
        )
    own = [rows * columns for rows, columns in grids]
    if not grids:
        if pixel_values.numel():
            raise ValueError("pixel_values: crops are given, and image_sizes names no picture")
        return None
    pixel_values = moved(pixel_values, device)
    if pixel_values.dim() == 4 and len(pixel_values) == sum(own):
        return Pictures(crops=pixel_values, views=None, grids=grids)
    if pixel_values.dim() == 4 and len(grids) == 1:
        pixel_values = pixel_values[None]
    if pixel_values.dim() == 4 or len(pixel_values) != len(grids) or pixel_values.shape[1] < max(own):
        raise ValueError(
            f"pixel_values: found shape {tuple(pixel_values.shape)} for {len(grids)} pictures of {own} crops each"
        )
    first = int(pixel_values.shape[1] > max(own))
    crops = torch.cat([row[first : first + count] for row, count in zip(pixel_values, own, strict=True)])
    return Pictures(crops=crops, views=pixel_values[:, 0] if first else None, grids=grids)
