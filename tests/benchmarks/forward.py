"""Forward and backward of some photographs, as one pack and as published: `python -m tests.benchmarks.forward`.

The small golden model, or one of random weights where there is no material (its sizes are printed), float32, sdpa, one
core. As published: one sample at a time, crops of zeros up to num_crops + 1 through the whole tower, its last layer
computed and not used, logits at every position. Ours makes normalisation and global views from bytes inside the
measured time; the published pixels are made before. The limit: the operations of ours at the rate of a large product.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from data.images import open_picture
from data.manifest import CHAT_TEMPLATES
from tests.benchmarks.figures import Figure, command, of_rounds
from tests.benchmarks.matrix_rate import MatrixRate
from tests.benchmarks.pairs import in_turns, keep_to_one_core, print_table
from tests.benchmarks.pictures import pictures
from tests.benchmarks.published import published_inputs, published_states
from tests.conftest import MATERIAL
from tests.factories.goldens import Goldens
from tests.factories.small_models import small_tokenizer
from train.model import Phi3VForCausalLM, Phi3VProcessor
from train.model.tiny import ROWS_BEHIND_PIECES, Sizes, save_preprocessor, tiny_config
from train.model.tokens import save_tokenizer

PROMPT = "<|user|>\n<|image_1|>\nWhat is shown in this image?<|end|>\n<|assistant|>\n"
ANSWER = "Product: Red cotton shirt, Category: SHIRTS, Full Price: 1950.0<|end|>\n"
NEEDED_AT_16 = 1.2
HEADER = ("num_crops", "tokens", "published", "with logits at labels only", "ours", "ratio", "ratio to the second")
SAME_LOSS = 1e-4
# As small as the golden model, with the published vocabulary.
SIZES = Sizes(
    hidden=64, layers=3, vision_hidden=32, vision_layers=4, crop_size=336, patch_size=14, num_crops=16, vocab=340
)
VOCABULARY = 32_064


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One photograph with its prompt, for both ways."""

    input_ids: Tensor
    """[1, T]"""
    labels: Tensor
    """[1, T], of the answer alone"""
    crops: Tensor
    """bytes [rows * columns, 3, 336, 336]"""
    image_sizes: Tensor
    """[1, 2]"""
    pixel_values: Tensor
    """float32 [num_crops + 1, 3, 336, 336], as published"""
    grid: tuple[int, int]


def sample(processor: Phi3VProcessor, picture: Image.Image) -> Sample:
    """The inputs of one photograph."""
    made = processor(PROMPT + ANSWER, images=picture, return_tensors="pt")
    labels = made["input_ids"].clone()
    labels[:, : -len(processor.tokenizer(ANSWER, add_special_tokens=False)["input_ids"])] = -100
    pixels, grid = published_inputs(picture, processor.num_crops)
    return Sample(
        input_ids=made["input_ids"],
        labels=labels,
        crops=made["pixel_values"],
        image_sizes=made["image_sizes"],
        pixel_values=pixels,
        grid=grid,
    )


def as_published(model: Phi3VForCausalLM, samples: Sequence[Sample], all_logits: bool = True) -> float:
    """Summed loss of the samples, one at a time, with backward; `all_logits` False: only where there is a label."""
    total = 0.0
    for one in samples:
        hidden, targets = published_states(model, one.input_ids, one.pixel_values, one.grid)[0, :-1], one.labels[0, 1:]
        if not all_logits:
            hidden, targets = hidden[targets != -100], targets[targets != -100]
        loss = F.cross_entropy(F.linear(hidden, model.lm_head.weight).float(), targets, reduction="sum")
        loss.backward()
        total += loss.item()
    return total


def as_one_pack(model: Phi3VForCausalLM, samples: Sequence[Sample]) -> float:
    """Summed loss of the samples in one pack, with backward."""
    ends = [0]
    for one in samples:
        ends.append(ends[-1] + one.input_ids.shape[1])
    output = model(
        input_ids=torch.cat([one.input_ids for one in samples], dim=1),
        labels=torch.cat([one.labels for one in samples], dim=1),
        pixel_values=torch.cat([one.crops for one in samples]),
        image_sizes=torch.cat([one.image_sizes for one in samples]),
        cu_seqlens=ends,
        loss_reduction="sum",
        return_logits=False,
    )
    output.loss.backward()
    return float(output.loss.item())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(prog="python -m tests.benchmarks.forward", description=__doc__)
    arguments.add_argument("--material", type=Path, default=MATERIAL, help="folder that holds phi3v/ and clothing/")
    arguments.add_argument("--pictures", type=int, default=8, help="of one pack (default: 8)")
    arguments.add_argument("--rounds", type=int, default=3, help="turns of each way (default: 3)")
    return arguments


def small_model(material: Path, folder: Path) -> tuple[str, Phi3VForCausalLM, dict[int, Phi3VProcessor]]:
    """What the model is, itself, and its processors by num_crops: the golden one, or one of random weights as small."""
    if (material / "phi3v" / "golden").is_dir():
        goldens = Goldens(material, folder)
        return "golden model", goldens.model("sdpa").train(), goldens.processors
    folder.mkdir()
    ids = save_tokenizer(folder, small_tokenizer(), CHAT_TEMPLATES["phi3v"])
    save_preprocessor(folder, SIZES)
    torch.manual_seed(0)
    Phi3VForCausalLM(tiny_config(SIZES, VOCABULARY - ROWS_BEHIND_PIECES, ids)).save_pretrained(folder)
    model = Phi3VForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    processors = {crops: Phi3VProcessor.from_pretrained(folder, num_crops=crops) for crops in (4, 16)}
    return "random model", model.train().requires_grad_(True), processors


def measure(options: argparse.Namespace) -> list[Figure]:
    """Seconds of forward and backward at each number of crops."""
    keep_to_one_core()
    found = pictures(options.material, options.pictures)
    opened = [open_picture(data) for data in found.files]
    product = MatrixRate()
    rows, figures = [], []
    with tempfile.TemporaryDirectory() as folder:
        what, model, processors = small_model(options.material, Path(folder) / "tiny")
        for num_crops, processor in sorted(processors.items(), reverse=True):
            samples = [sample(processor, picture) for picture in opened]
            losses = as_published(model, samples), as_one_pack(model, samples)
            assert abs(losses[0] - losses[1]) <= SAME_LOSS * losses[0], losses
            with FlopCounterMode(display=False) as counter:
                as_one_pack(model, samples)
            times = in_turns(
                {
                    "published": lambda samples=samples: as_published(model, samples),
                    "few logits": lambda samples=samples: as_published(model, samples, all_logits=False),
                    "ours": lambda samples=samples: as_one_pack(model, samples),
                    "product": product.run,
                },
                options.rounds,
                warm_up=0,
                clock=time.process_time,
            )
            faster, without_head = (times["ours"].times_faster_than(times[way]) for way in ("published", "few logits"))
            tokens = sum(one.input_ids.shape[1] for one in samples)
            seconds = [f"{times[way].median_s:.2f}" for way in ("published", "few logits", "ours")]
            rows.append((str(num_crops), f"{tokens:,}", *seconds, f"{faster:.2f}×", f"{without_head:.2f}×"))
            name = f"{what}, {options.pictures} {found.kind}, {num_crops} crops"
            least = [product.seconds_for(counter.get_total_flops(), taken) for taken in times["product"].seconds]
            published = of_rounds(
                name,
                times["ours"].seconds,
                "s",
                higher_is_better=False,
                baseline=("published way", times["published"].seconds),
                limit=("its products alone", least),
            )
            if num_crops == 16:
                published = published.asking(f"{NEEDED_AT_16:g}× as fast as published", faster >= NEEDED_AT_16)
            few = ("published way, logits at labels only", times["few logits"].seconds)
            second = of_rounds(
                f"{name}, beside few logits", times["ours"].seconds, "s", higher_is_better=False, baseline=few
            )
            figures += [published, second]
    print_table(HEADER, rows)
    config, vision = model.config, model.config.vision_config
    print(
        f"Decoder {config.num_hidden_layers} layers of {config.hidden_size}, tower {vision.num_hidden_layers} of "
        f"{vision.hidden_size}, vocabulary {config.vocab_size:,}; seconds for all {options.pictures} {found.kind}."
    )
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    return command(parser(), measure, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
