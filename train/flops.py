"""How much arithmetic a step is, and how much a device can do: what the utilisation (MFU) is told from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.loss import count_labels
from train.pipeline.batch import Batch

if TYPE_CHECKING:
    from train.model.configuration import Phi3VConfig

# Dense bfloat16 operations a second with float32 sums, as the makers' data sheets have them, by a part of the name
# that the driver gives; the first that fits counts.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "A40": 150e12,
    "RTX A6000": 155e12,
    "RTX 6000 Ada": 364e12,
    "4090": 165e12,
    "3090": 71e12,
}


def peak_flops(name: str, precision: str) -> float | None:
    """Operations a second of one device, by its name; None where it is not known, or in fp32."""
    if precision not in ("bf16", "fp16"):
        return None
    return next((peak for part, peak in PEAKS.items() if part in name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """Operations of forward and backward, recomputed activations left out; those of a bare matrix product are 2 an
    element and place. A frozen part that nothing trained lies before needs no backward at all."""

    per_token: float
    per_label: float
    per_crop: float
    """The global view is one of them."""
    per_pair: float
    """Of two tokens of a sample, in all attention layers of the decoder."""

    @classmethod
    def of(cls, trained: Mapping[str, int], total: Mapping[str, int], model: "Phi3VConfig") -> "Arithmetic":
        """
        trained, total: parameters by part (see engine.part_sizes). model: its configuration.
        """

        def cost(part: str, passed: bool) -> float:
            """Operations a place: forward, backward to its input where that goes on, backward to its weights."""
            return 2.0 * (total[part] * (2 if passed or trained[part] else 1) + trained[part])

        before_projection = trained["vision"] > 0
        before_text = before_projection or trained["projection"] > 0 or trained["embeddings"] > 0
        tower = model.vision_config
        places = (tower.image_size // tower.patch_size) ** 2 + 1
        return cls(
            per_token=cost("text", before_text),
            per_label=cost("head", True),
            per_crop=cost("vision", False) * places + cost("projection", before_projection) * model.tokens_per_side**2,
            per_pair=6.0 * model.hidden_size * model.num_hidden_layers,
        )

    def of_packs(self, batches: Sequence[Batch]) -> int:
        """Operations of one rank's packs; empty ones are none."""
        total = 0.0
        for batch in batches:
            if batch.keys:
                lengths = (batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).astype("int64")
                total += self.per_token * len(batch.input_ids) + self.per_label * count_labels(batch.labels)
                total += self.per_pair * float((lengths * lengths).sum()) + self.per_crop * seen_crops(batch)
        return round(total)


def seen_crops(batch: Batch) -> int:
    """Crops that go through the tower: a picture of one crop is its own global view, any other has one besides."""
    return len(batch.crops) + int((batch.grids.prod(axis=1) > 1).sum())
