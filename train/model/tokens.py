"""A small tokenizer of the published kind, trained on given text: same pipeline, same special tokens and flags."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

MARK = "▁"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
FIRST = ("<unk>", "<s>", "</s>")
# In the published order, behind the pieces; numbers stand for <|placeholder…|>.
_BEHIND: tuple[str | range, ...] = (
    "<|endoftext|>",
    "<|assistant|>",
    range(1, 5),
    "<|system|>",
    "<|end|>",
    range(5, 7),
    "<|user|>",
    range(7, 40),
    "<|image|>",
)
KEEP_WHITE_SPACE = {"<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|end|>", "<|user|>"}
STOPS = ("</s>", "<|endoftext|>", "<|assistant|>", "<|end|>")
# Words with their mark, digits one by one, runs of signs: a merge never crosses from one to the next.
WORDS = re.compile(rf"{MARK}?[^\W\d_]+|\d|{MARK}?[^\w\s{MARK}]+|_+|{MARK}")


def special_tokens() -> list[str]:
    """The tokens behind the pieces, in order."""
    names: list[str] = []
    for entry in _BEHIND:
        names += [entry] if isinstance(entry, str) else [f"<|placeholder{number}|>" for number in entry]
    return names


def train_tokenizer(texts: Iterable[str], pieces: int) -> dict[str, Any]:
    """The content of a tokenizer.json with at most `pieces` pieces, bytes and <unk>, <s>, </s> among them.

    Digits are pieces of their own; characters too rare for a piece are spelt in bytes. The same for the same texts.
    Raises ValueError where `pieces` leaves no room beside the bytes.
    """
    room = pieces - len(FIRST) - len(BYTES)
    if room < 16:
        raise ValueError(f"a vocabulary of {pieces} pieces is too small; needs {len(FIRST) + len(BYTES) + 16} or more")
    lines = [WORDS.findall(MARK + text.replace(" ", MARK)) for text in texts]
    counts = Counter(character for line in lines for word in line for character in word)
    counts.update({MARK: 1, **dict.fromkeys("0123456789", 1)})
    # The trainer breaks ties among rare characters at random, so the alphabet is chosen here.
    common = sorted(counts, key=lambda character: (-counts[character], character))
    alphabet = set(common[: room // 2]) | set(MARK + "0123456789")
    unknown = re.compile(f"[^{re.escape(''.join(sorted(alphabet)))} ]+")
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        special_tokens=[*FIRST, *BYTES],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trained.train_from_iterator((unknown.sub(" ", " ".join(line)) for line in lines), trainer)
    model = json.loads(trained.to_str())["model"]
    return _pipeline(model)


def _pipeline(model: dict[str, Any]) -> dict[str, Any]:
    start = len(model["vocab"])
    named = [*enumerate(FIRST), *enumerate(special_tokens(), start=start)]
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name, **_flags(name)} for number, name in named],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": MARK},
                {"type": "Replace", "pattern": {"String": " "}, "content": MARK},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                bos,
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": MARK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": model,
    }


def _flags(name: str) -> dict[str, bool]:
    return {
        "single_word": False,
        "lstrip": False,
        "rstrip": name not in KEEP_WHITE_SPACE,
        "normalized": False,
        "special": name != "</s>",
    }


def save_tokenizer(folder: Path, tokenizer: dict[str, Any], chat_template: str) -> dict[str, int]:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json; returns the added tokens' ids."""
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    more = ["<|system|>", "<|end|>", "<|user|>"]
    roles = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in tokenizer["added_tokens"]
        },
        "additional_special_tokens": more,
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
    }
    for file, content in (
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", settings),
        ("special_tokens_map.json", {"additional_special_tokens": more, **roles}),
    ):
        (folder / file).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return ids
