"""A folder of shards and a small run trained on it, made in seconds without DeepSpeed."""

import io
import json
from itertools import accumulate
from pathlib import Path

import torch
from PIL import Image

from data.conversation import Conversation
from data.geometry import image_tokens
from data.images import check_picture, open_picture
from data.index import write_index
from data.manifest import CHAT_TEMPLATES, Manifest
from data.schema import Sample
from data.shards import ShardWriter, iter_samples, shard_name
from train.checkpoint import Manifest as CheckpointManifest
from train.checkpoint import Slice, fingerprint_model, finish, write_slices
from train.config import dump, validate
from train.config_schema import Config
from train.model import Phi3VForCausalLM, Phi3VProcessor
from train.model.crops import canvas_crops
from train.model.tiny import Sizes, make

QUESTION = "<|image_1|>What is shown in this image?"
ANSWER = "Product: {title}, Category: {category}, Full Price: {price}"
FIELDS = {"title": "text", "category": "category", "price": "number"}
# Black pictures and white ones; the titles hold what must survive the way there and back.
PRODUCTS = (
    {"title": "Écharpe <|end|> 羊毛", "category": "scarves", "price": 1950.0},
    {"title": "Wool  coat <b>", "category": "coats", "price": 90.5},
)
SIZES = Sizes(
    hidden=64,
    layers=2,
    vision_hidden=64,
    vision_layers=2,
    crop_size=28,
    patch_size=14,
    num_crops=4,
    vocab=420,
)


def make_shards(folder: Path, template: str = "bare") -> Path:
    """Three splits of black and white pictures of many sizes; every third sample is white."""
    counts, shards = {}, {}
    for split, samples in (("train", 24), ("validation", 6), ("test", 18)):
        with ShardWriter(folder / split / shard_name(0), 0) as shard:
            entries = [
                shard.add(*example(f"{split}-{number}", number), f"{split}-{number}") for number in range(samples)
            ]
        write_index(folder / split / "index.arrow", entries)
        shards[split] = [{"name": shard_name(0), "bytes": shard.bytes, "sha256": shard.sha256, "samples": samples}]
        counts[split] = {"samples": samples, "pictures": samples, "bytes": shard.bytes}
    Manifest(
        counts=counts,
        split_rule={"by": "product"},
        build={"mapping": {"origin": "drawn for a test", "licence": "CC0-1.0"}},
        chat_template={"name": template, "template": CHAT_TEMPLATES[template]},
        answer_template=ANSWER,
        question=QUESTION,
        fields=FIELDS,
        shards=shards,
        rejected={"truncated": 3},
        leaks_prevented=1,
    ).save(folder)
    return folder


def example(key: str, number: int):  # type: ignore[no-untyped-def]
    """A sample and its picture."""
    product = PRODUCTS[number % 3 == 0]
    size = (30 + 7 * (number % 5), 30 + 11 * (number % 4))
    buffer = io.BytesIO()
    Image.new("RGB", size, "white" if number % 3 == 0 else "black").save(buffer, "PNG")
    messages = ({"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER.format(**product)})
    picture = check_picture(buffer.getvalue())
    source = {"row": number, "columns": {}}
    return Sample(key=key, messages=messages, images=("png",), target=product, source=source), [picture]


def make_run(folder: Path, shards: Path, base: Path, *, lora: bool = False, steps: int = 80) -> Path:
    """A run folder with one checkpoint of a model that has learned the two products."""
    if not base.exists():
        make(base, shards, SIZES, seed=0)
    tune = {"method": "lora", "lora": {"rank": 8, "alpha": 16, "parts": ["text_attention", "text_mlp"]}}
    values = {
        "run": {"name": folder.name, "folder": str(folder.parent)},
        "model": {"path": str(base), "precision": "fp32"},
        "tune": tune if lora else {},
        "data": {"shards": str(shards)},
        "wandb": {"mode": "disabled"},
    }
    config = validate(values, "test")
    model = Phi3VForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    if lora:
        from train.model.lora import add_lora

        model, _ = add_lora(model, **config.tune.lora.model_dump())
    losses = learn(model, Phi3VProcessor.from_pretrained(base), shards, steps, lr=1e-2 if lora else 3e-3)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(config))
    lines = [{"step": step, "kind": "train", "loss": loss, "lr": 3e-3} for step, loss in enumerate(losses, 1)]
    lines.append({"step": steps, "kind": "validation", "loss": losses[-1]})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "status.json").write_text(json.dumps({"state": "finished", "step": steps}))
    save(folder, model, config, steps, losses[-1])
    return folder


def learn(model: torch.nn.Module, processor: Phi3VProcessor, shards: Path, steps: int, lr: float) -> list[float]:
    """Fit the training split, six samples in one pack a step; the losses."""
    template = Manifest.load(shards).chat_template["template"]
    conversation = Conversation(processor.tokenizer.backend_tokenizer, template)
    samples = []
    for sample, pictures in iter_samples(shards, "train"):
        crops, grid = canvas_crops(open_picture(pictures[0]), processor.num_crops, processor.crop_size)
        ids, labels = conversation.encode(sample.messages, [image_tokens(*grid, processor.tokens_per_side)])
        size = [side * processor.crop_size for side in grid]
        samples.append((torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(crops), torch.tensor([size])))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=lr)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        chosen = [samples[(6 * step + one) % len(samples)] for one in range(6)]
        ids, labels, crops, sizes = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        ends = [0, *accumulate(len(sample[0]) for sample in chosen)]
        pictures = {"pixel_values": crops, "image_sizes": sizes}
        loss = model(input_ids=ids[None], labels=labels[None], cu_seqlens=ends, **pictures, return_logits=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def save(run: Path, model: torch.nn.Module, config: Config, step: int, loss: float | None) -> Path:
    """Write a checkpoint as two ranks would: the second half of each parameter in the second file."""
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    aside = run / "checkpoints" / ".aside"
    aside.mkdir(parents=True)
    halves: tuple[list[Slice], list[Slice]] = ([], [])
    for name, value in trained.items():
        flat = value.flatten().float()
        cut = (len(flat) + 1) // 2
        for half, start, part in ((halves[0], 0, flat[:cut]), (halves[1], cut, flat[cut:])):
            if len(part):
                kinds = {kind: part.clone() for kind in ("weight", "exp_avg", "exp_avg_sq")}
                half.append(Slice(name=name, offset=start, tensors=kinds))
    manifest = CheckpointManifest(
        step=step,
        adam_step=step,
        world_size=2,
        plan="plan",
        config=config.model_dump(),
        base={"path": config.model.path, "fingerprint": fingerprint_model(Path(config.model.path))},
        shapes={name: list(value.shape) for name, value in trained.items()},
        files=dict(write_slices(aside, rank, part) for rank, part in enumerate(halves)),
        validation_loss=loss,
        versions={"torch": torch.__version__},
    )
    return finish(aside, manifest)
