"""Small whole folders of shards with drawn pictures, and a tokenizer trained on nothing but bytes. Imports no torch."""

import io
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from data.images import check_picture
from data.index import write_index
from data.manifest import CHAT_TEMPLATES, Manifest
from data.schema import Picture, Sample, image_names
from data.shards import ShardWriter, shard_name
from train.pipeline.corpus import ShardSet

SPECIALS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
SWALLOWING = ("</s>", "<|assistant|>")
NAMES = ("coat", "scarf", "trench coat", "bag", "check cotton shirt", "shoe", "杯", "платье")


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallShards:
    """A folder as `data.build` leaves one, and a tokenizer for it."""

    folder: Path
    tokenizer: Path
    samples: dict[str, list[Sample]]
    """Split → what was written, in the order of the index."""

    def shard_set(self, split: str = "train") -> ShardSet:
        """A split's shards as a corpus takes them."""
        folder = self.folder / split
        names = tuple(sorted(path.name for path in folder.glob("*.tar")))
        return ShardSet(folder=folder, shard_names=names, samples=len(self.samples[split]))


def write_tokenizer(path: Path) -> Path:
    """A byte-level vocabulary in the form of the published tokenizer.json."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    letters = dict.fromkeys("▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:,.?")
    vocabulary |= {letter: 259 + place for place, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, rstrip=name in SWALLOWING) for name in ("<unk>", "<s>", "</s>", *SPECIALS)]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def draw(rng: random.Random, width: int, height: int) -> Picture:
    """A picture with colours of its own, as JPEG or PNG."""
    colours = np.array([[[rng.randrange(256) for _ in range(3)] for _ in range(4)] for _ in range(4)], np.uint8)
    picture = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    picture.save(content, rng.choice(["JPEG", "PNG"]))
    return check_picture(content.getvalue())


def small_shards(
    folder: Path, *, seed: int = 0, shards: int = 3, per_shard: int = 20, splits: tuple[str, ...] = ("train",)
) -> SmallShards:
    """Write splits of `shards` × `per_shard` samples of 0, 1 or 2 pictures, 20 to 160 pixels a side."""
    rng = random.Random(seed)
    samples: dict[str, list[Sample]] = {}
    listed: dict[str, list[dict]] = {}
    for split in splits:
        entries, samples[split], listed[split] = [], [], []
        for number in range(shards):
            with ShardWriter(folder / split / shard_name(number), number) as shard:
                for place in range(per_shard):
                    count = rng.choices([0, 1, 2], [1, 6, 3])[0]
                    pictures = [draw(rng, rng.randint(20, 160), rng.randint(20, 160)) for _ in range(count)]
                    sample = small_sample(f"{split}-{number}-{place}", rng, pictures)
                    entries.append(shard.add(sample, pictures, group=sample.key))
                    samples[split].append(sample)
            size = {"bytes": shard.bytes, "sha256": shard.sha256, "samples": per_shard}
            listed[split].append({"name": shard_name(number)} | size)
        write_index(folder / split / "index.arrow", entries)
    counts = {split: {"samples": len(samples[split]), "pictures": 0, "bytes": 0} for split in splits}
    Manifest(
        counts=counts,
        split_rule={},
        build={"seed": seed},
        chat_template={"name": "bare", "template": CHAT_TEMPLATES["bare"]},
        answer_template="It is {category}.",
        question="What is this?",
        fields={"category": "category"},
        shards=listed,
        rejected={},
        leaks_prevented=0,
    ).save(folder)
    return SmallShards(folder=folder, tokenizer=write_tokenizer(folder / "tokenizer.json"), samples=samples)


def small_sample(key: str, rng: random.Random, pictures: list[Picture]) -> Sample:
    """A question with a tag for each picture, and an answer."""
    tags = "".join(f"<|image_{number + 1}|>\n" for number in range(len(pictures)))
    category = rng.choice(NAMES)
    return Sample(
        key=key,
        messages=(
            {"role": "user", "content": f"{tags}What is shown in these {len(pictures)} pictures?"},
            {"role": "assistant", "content": f"It is {category}."},
        ),
        images=image_names([picture.format for picture in pictures]),
        target={"category": category},
        source={"row": 0, "columns": {}},
    )


def damage(folder: Path, split: str, shard: int, byte: int) -> None:
    """Turn one byte of a shard over, its size unchanged."""
    path = folder / split / shard_name(shard)
    content = bytearray(path.read_bytes())
    content[byte] ^= 0xFF
    path.write_bytes(content)
