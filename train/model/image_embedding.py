"""From crops to image tokens: global view, CLIP tower, 2×2 merge, separators, projection."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel
from transformers.models.clip.configuration_clip import CLIPVisionConfig

from train.model.configuration import Phi3VConfig
from train.model.transfer import moved, placed

# image_mean and image_std of both published preprocessor_config.json files.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

Grid = tuple[int, int]


class VisionTower(CLIPVisionModel):
    """transformers' CLIP tower, read at its second last layer; the last one and `post_layernorm` are never run.

    A subclass also keeps transformers from renaming its tensors: the published names have the level `vision_model`.
    """

    def forward(self, crops: Tensor) -> Tensor:
        """Normalised crops [n, 3, c, c] → features without the class token [n, (c / patch)², width]."""
        hidden = self.pre_layrnorm(self.embeddings(crops))
        for layer in self.encoder.layers[:-1]:
            hidden = layer(hidden, None)
        return hidden[:, 1:]

    def unused_parameters(self) -> list[nn.Parameter]:
        """The 18 parameters that are stored and never reach the output."""
        return [*self.encoder.layers[-1].parameters(), *self.post_layernorm.parameters()]


class ImageProcessor(nn.Module):
    """Holds the tower under its published name, `img_processor.vision_model`."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.vision_model = VisionTower(config)


class ImageEmbedding(nn.Module):
    """The pictures of a batch or a pack as vectors of the decoder's width, picture after picture."""

    crops_per_chunk = 32

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        vision = config.vision_config
        vision._attn_implementation = config._attn_implementation
        self.crop_size = config.crop_size
        self.side = config.tokens_per_side
        merged = 4 * vision.hidden_size
        self.img_processor = ImageProcessor(vision)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, merged))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, merged))
        self.img_projection = nn.Sequential(
            nn.Linear(merged, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )

    def lengths(self, grids: Sequence[Grid]) -> list[int]:
        """Image tokens of each picture."""
        side = self.side
        return [side * rows * (side * columns + 1) + 1 + side * (side + 1) for rows, columns in grids]

    def forward(self, crops: Tensor, views: Tensor | None, grids: Sequence[Grid], chunks: int | None = None) -> Tensor:
        """Image tokens [sum of lengths(grids), hidden_size].

        Arguments: the pictures' own crops [K, 3, c, c], bytes or normalised float32, picture after picture and row by
        row; their global views [N, 3, c, c] if there are any at hand, else None; (rows, columns) of each picture; the
        exact number of calls of the tower, None for calls of `crops_per_chunk`.
        Without pictures the tower runs on an empty crop and the result is one row of zeros, connected to every
        parameter, so that ranks with and without pictures do the same.
        """
        if not grids:
            device, dtype = crops.device, self.sub_GN.dtype
            empty = torch.zeros(1, 3, self.crop_size, self.crop_size, device=device, dtype=dtype)
            merged = self._tower(empty, chunks or 1)
            rows = torch.cat((merged.flatten(0, 2), *self._separators().split(1)))
            return self.img_projection(rows).sum(dim=0, keepdim=True) * 0
        pixels = normalise(crops)
        seen = [pixels]
        several = [index for index, (rows, columns) in enumerate(grids) if rows * columns > 1]
        if views is not None:
            seen.append(normalise(views))
            view_rows = list(range(len(pixels), len(pixels) + len(grids)))
        else:
            # A picture of one crop is its own global view: bicubic resizing to the same size changes nothing.
            view_rows = self._starts(grids)[:-1]
            for offset, index in enumerate(several):
                view_rows[index] = len(pixels) + offset
            seen.append(global_views(pixels, grids, several, self.crop_size))
        tower_input = torch.cat(seen) if len(seen[1]) else pixels
        merged = self._tower(tower_input.to(self.sub_GN.dtype), chunks)
        return self.img_projection(self._arrange(merged, grids, view_rows))

    def _separators(self) -> Tensor:
        """The row separator and the one before the global view, [2, width].

        Both leave through one node of the graph, so that their gradients are finished in one order whether a pack has
        pictures or not: ZeRO-2 sums gradients over the ranks in the order in which they are finished.
        """
        return torch.stack((self.sub_GN.flatten(), self.glb_GN.flatten()))

    def _starts(self, grids: Sequence[Grid]) -> list[int]:
        starts = [0]
        for rows, columns in grids:
            starts.append(starts[-1] + rows * columns)
        return starts

    def _tower(self, crops: Tensor, chunks: int | None) -> Tensor:
        """Crops [n, 3, c, c] → merged features [n, side, side, 4 · width] in exactly `chunks` calls of the tower."""
        tower = self.img_processor.vision_model
        if chunks is None:
            chunks = math.ceil(len(crops) / self.crops_per_chunk)
        features: list[Tensor] = []
        idle: list[Tensor] = []
        for piece in crops.tensor_split(chunks):
            present = len(piece) > 0
            (features if present else idle).append(tower(piece if present else crops[:1]))
        joined = torch.cat(features) if len(features) > 1 else features[0]
        for output in idle:
            joined = joined + output.sum() * 0
        n, side, width = len(joined), self.side, joined.shape[-1]
        joined = joined.view(n, side, 2, side, 2, width).transpose(2, 3)
        return joined.reshape(n, side, side, 4 * width)

    def _arrange(self, merged: Tensor, grids: Sequence[Grid], view_rows: Sequence[int]) -> Tensor:
        """Each picture's crops as one grid of tokens with a separator after each row, then the global view's."""
        starts, lengths = self._starts(grids), self.lengths(grids)
        sub_separator, glb_separator = self._separators()
        same_grid: dict[Grid, list[int]] = {}
        for index, grid in enumerate(grids):
            same_grid.setdefault(grid, []).append(index)
        arranged: list[Tensor] = [merged] * len(grids)
        side, width = self.side, merged.shape[-1]
        for (rows, columns), members in same_grid.items():
            count = len(members)
            own = placed(
                [starts[index] + offset for index in members for offset in range(rows * columns)], merged.device
            )
            views = placed([view_rows[index] for index in members], merged.device)
            sub = merged[own].view(count, rows, columns, side, side, width).transpose(2, 3)
            sub = with_separators(sub.reshape(count, rows * side, columns * side, width), sub_separator)
            view = with_separators(merged[views], sub_separator)
            tokens = torch.cat((sub, glb_separator.expand(count, 1, width), view), dim=1)
            if len(same_grid) == 1:
                return tokens.flatten(0, 1)
            for index, picture in zip(members, tokens.unbind(0), strict=True):
                arranged[index] = picture
        assert [len(picture) for picture in arranged] == lengths
        return torch.cat(arranged)


def with_separators(grid: Tensor, separator: Tensor) -> Tensor:
    """[n, rows, columns, width] and [width] → [n, rows · (columns + 1), width]: the separator ends each row."""
    count, rows, _, width = grid.shape
    return torch.cat((grid, separator.expand(count, rows, 1, width)), dim=2).flatten(1, 2)


def normalise(crops: Tensor) -> Tensor:
    """Bytes [n, 3, c, c] → normalised float32; what is float already is taken as normalised."""
    if crops.dtype != torch.uint8:
        return crops.float()
    mean, std = (moved(torch.tensor(values), crops.device)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    return crops.float().div_(255).sub_(mean).div_(std)


def global_views(pixels: Tensor, grids: Sequence[Grid], chosen: Sequence[int], crop_size: int) -> Tensor:
    """The canvases of the chosen pictures squeezed to one crop each, float32 [len(chosen), 3, c, c].

    Bicubic without antialiasing, on the normalised canvas, as published.
    """
    starts = [0]
    for rows, columns in grids:
        starts.append(starts[-1] + rows * columns)
    views = pixels.new_empty(len(chosen), 3, crop_size, crop_size)
    for row, index in enumerate(chosen):
        rows, columns = grids[index]
        canvas = pixels[starts[index] : starts[index + 1]].view(rows, columns, 3, crop_size, crop_size)
        canvas = canvas.permute(2, 0, 3, 1, 4).reshape(1, 3, rows * crop_size, columns * crop_size)
        views[row] = F.interpolate(canvas, size=(crop_size, crop_size), mode="bicubic", align_corners=False)[0]
    return views
