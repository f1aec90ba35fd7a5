"""The processor: a prompt and its pictures to what the model takes, with the published ids."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerFast
from transformers.utils import cached_file

from data.conversation import IMAGE_TAG, flatten_content
from data.geometry import image_tokens
from train.model.crops import canvas_crops
from train.model.image_embedding import IMAGE_MEAN, IMAGE_STD

PREPROCESSOR = "preprocessor_config.json"
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
# Newer versions of transformers leave out the first and write the second.
OPTIONAL_FILES = ("special_tokens_map.json", TEMPLATE_FILE)
ONE_IMAGE = "<|image|>"

Picture = Image.Image


class Phi3VProcessor:
    """Tokenizer and picture settings of a model folder.

    Pictures leave as the bytes of their own crops alone; the model makes normalisation and global view from them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        num_crops: int = 16,
        crop_size: int = 336,
        tokens_per_side: int = 12,
        settings: dict[str, Any] | None = None,
        files: dict[str, bytes] | None = None,
    ) -> None:
        """`settings`: preprocessor_config.json as read; `files`: the tokenizer's files, written again unchanged."""
        self.tokenizer = tokenizer
        self.num_crops = num_crops
        self.crop_size = crop_size
        self.tokens_per_side = tokens_per_side
        self._settings = dict(settings or {})
        self._files = dict(files or {})

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **kwargs: Any) -> "Phi3VProcessor":
        """Read a folder or a hub name; `num_crops` may be given to win over the file.

        The tokenizer is read by PreTrainedTokenizerFast whatever its configuration says: the class that stands there
        gives wrong ids in transformers 5. Remote code is never followed.
        """
        num_crops = kwargs.pop("num_crops", None)
        hub = ("cache_dir", "revision", "token", "local_files_only")
        options: dict[str, Any] = {key: kwargs[key] for key in hub if key in kwargs}
        settings = json.loads(_read(name, PREPROCESSOR, options))
        for key, needed in (("image_mean", IMAGE_MEAN), ("image_std", IMAGE_STD)):
            if not np.allclose(settings.get(key, needed), needed, rtol=0, atol=1e-7):
                raise ValueError(f"{name}/{PREPROCESSOR}: {key} {settings[key]} is not the published {needed}")
        files = {file: _read(name, file, options) for file in TOKENIZER_FILES}
        for file in OPTIONAL_FILES:
            path = cached_file(str(name), file, _raise_exceptions_for_missing_entries=False, **options)
            if path is not None:
                files[file] = Path(path).read_bytes()
        tokenizer = PreTrainedTokenizerFast.from_pretrained(name, **options)
        tokens = settings.get("num_img_tokens", 144)
        side = settings.get("tokens_per_side", round(tokens**0.5))
        return cls(
            tokenizer,
            num_crops=num_crops or settings.get("num_crops", 16),
            crop_size=settings.get("crop_size", 336),
            tokens_per_side=side,
            settings=settings,
            files=files,
        )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoProcessor") -> None:
        """What AutoProcessor calls for a class whose code came with a model's folder; there is nothing to remember."""

    def save_pretrained(self, folder: str | os.PathLike[str], **kwargs: Any) -> list[str]:
        """Write preprocessor_config.json and the tokenizer's files, a changed chat template among them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self._files:
            self._save_files(folder)
        else:
            self.tokenizer.save_pretrained(folder)
        settings = {key: value for key, value in self._settings.items() if key != "auto_map"}
        settings.setdefault("image_mean", list(IMAGE_MEAN))
        settings.setdefault("image_std", list(IMAGE_STD))
        settings.update(
            image_processor_type="Phi3VImageProcessor",
            processor_class="Phi3VProcessor",
            num_crops=self.num_crops,
            num_img_tokens=self.tokens_per_side**2,
        )
        if (self.crop_size, self.tokens_per_side) != (336, 12):
            settings.update(crop_size=self.crop_size, tokens_per_side=self.tokens_per_side)
        _write_json(folder / PREPROCESSOR, settings)
        names = (*TOKENIZER_FILES, *OPTIONAL_FILES, PREPROCESSOR)
        return [str(folder / name) for name in names if (folder / name).is_file()]

    def _save_files(self, folder: Path) -> None:
        """The tokenizer's files as they were read; where the template was changed, with the new one."""
        for file, content in self._files.items():
            (folder / file).write_bytes(content)
        template = self.tokenizer.chat_template
        settings = json.loads(self._files["tokenizer_config.json"])
        if TEMPLATE_FILE in self._files and template is not None:
            (folder / TEMPLATE_FILE).write_text(template, encoding="utf-8")
        elif settings.get("chat_template") != template:
            _write_json(folder / "tokenizer_config.json", {**settings, "chat_template": template})

    @property
    def chat_template(self) -> str | None:
        """The template of `apply_chat_template`, as saved with the processor."""
        return self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, template: str) -> None:
        self.tokenizer.chat_template = template

    def __call__(
        self,
        text: str | Sequence[str],
        images: Picture | Sequence[Picture] | Sequence[Sequence[Picture]] | None = None,
        return_tensors: str | None = None,
        padding: bool | str = False,
        padding_side: str | None = None,
    ) -> BatchFeature:
        """One prompt or a list of them.

        Arguments: text with the tags <|image_k|>; the pictures of the prompt, or a list of lists for a list of
        prompts (a flat list is dealt out by the tags); "pt" or "np"; padding of shorter prompts and its side.
        Returns: input_ids int64 [B, T] with −k at the places of picture k; attention_mask [B, T]; with pictures
        pixel_values uint8 [K, 3, c, c], all pictures' own crops, and image_sizes int64 [N, 2], the canvases' height
        and width.
        Without pictures a tag is ordinary text.
        Raises ValueError for tags that do not match the pictures, for a picture without size or too thin for its
        canvas, and for prompts of unequal length without padding.
        """
        texts = [text] if isinstance(text, str) else list(text)
        dealt = _deal(texts, images)
        crops: list[np.ndarray] = []
        sizes: list[tuple[int, int]] = []
        rows: list[list[int]] = []
        for number, (prompt, pictures) in enumerate(zip(texts, dealt, strict=True)):
            counts = []
            where = "" if isinstance(text, str) else f"prompt {number}: "
            for place, picture in enumerate(pictures, start=1):
                try:
                    pieces, (high, wide) = canvas_crops(picture, self.num_crops, self.crop_size)
                except ValueError as error:
                    raise ValueError(f"{where}picture {place}: {error}") from error
                crops.append(pieces)
                sizes.append((high * self.crop_size, wide * self.crop_size))
                counts.append(image_tokens(high, wide, self.tokens_per_side))
            rows.append(self._ids(prompt, counts, where))
        data: dict[str, np.ndarray] = self._pad(rows, padding, padding_side)
        if crops:
            data["pixel_values"] = np.concatenate(crops)
            data["image_sizes"] = np.array(sizes, dtype=np.int64)
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _ids(self, text: str, counts: Sequence[int], where: str) -> list[int]:
        """Ids of one prompt; −k as often as picture k has tokens."""
        if not counts:
            return list(self.tokenizer(text)["input_ids"])
        if len(counts) == 1 and not IMAGE_TAG.search(text) and text.count(ONE_IMAGE) == 1:
            text = text.replace(ONE_IMAGE, "<|image_1|>")
        pieces = IMAGE_TAG.split(text)
        numbers = [int(number) for number in pieces[1::2]]
        if set(numbers) != set(range(1, len(counts) + 1)):
            found = ", ".join(f"<|image_{number}|>" for number in sorted(set(numbers))) or "none"
            raise ValueError(
                f"{where}the text has the tags {found} and {len(counts)} pictures are given; each picture needs its "
                "tag, numbered from 1, and each tag its picture"
            )
        ids: list[int] = []
        for place, piece in enumerate(pieces):
            if place % 2:
                ids += [-int(piece)] * counts[int(piece) - 1]
            else:
                ids += self.tokenizer(piece)["input_ids"]
        return ids

    def _pad(self, rows: list[list[int]], padding: bool | str, side: str | None) -> dict[str, np.ndarray]:
        longest = max(len(row) for row in rows)
        if not padding and any(len(row) != longest for row in rows):
            raise ValueError("prompts of unequal length need padding=True")
        side = side or self.tokenizer.padding_side
        ids = np.full((len(rows), longest), self.tokenizer.pad_token_id or 0, dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            place = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
            ids[index, place] = row
            mask[index, place] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def apply_chat_template(
        self,
        conversation: Sequence[dict[str, Any]],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        images: Sequence[Picture] | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """The text of a conversation, whose contents may be strings or lists of parts; with `tokenize`, its inputs.

        As in the published processor, what a message holds is part of the text: <|end|> in it is the token. For
        untrusted text use `data.conversation`.
        """
        messages = flatten_content(conversation)
        text: str = self.tokenizer.apply_chat_template(
            messages,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **kwargs,
        )
        return self(text, images=images, return_tensors=return_tensors) if tokenize else text

    def decode(self, token_ids: Any, skip_special_tokens: bool = True, **kwargs: Any) -> str:
        """Text of token ids [T]; picture places are left out."""
        ids = [int(token) for token in token_ids if int(token) >= 0]
        return str(self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, **kwargs))

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = True, **kwargs: Any) -> list[str]:
        """Texts of token ids [B, T]."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens, **kwargs) for row in sequences]


def _deal(texts: Sequence[str], images: Any) -> list[list[Picture]]:
    """The pictures of each prompt."""
    if images is None:
        return [[] for _ in texts]
    given = [images] if isinstance(images, Picture) else list(images)
    if any(isinstance(entry, (list, tuple)) or entry is None for entry in given):
        if len(given) != len(texts):
            raise ValueError(f"images: found lists for {len(given)} prompts, and there are {len(texts)}")
        return [list(entry) if isinstance(entry, (list, tuple)) else [entry] if entry else [] for entry in given]
    if len(texts) == 1:
        return [given]
    counts = [len(set(map(int, IMAGE_TAG.findall(prompt)))) or prompt.count(ONE_IMAGE) for prompt in texts]
    if sum(counts) != len(given):
        raise ValueError(f"images: {len(given)} pictures for {sum(counts)} tags in {len(texts)} prompts")
    ends = np.cumsum(counts)
    return [given[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _read(name: str | os.PathLike[str], file: str, options: dict[str, Any]) -> bytes:
    path = cached_file(str(name), file, **options)
    if path is None:
        raise FileNotFoundError(f"{name}: has no {file}")
    return Path(path).read_bytes()


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
