"""Messages to token ids and labels, such that nothing inside a message can become a special token. Imports no torch.

The ids are the published processor's for the rendered text: a word-start mark before every stretch between special
tokens, white space swallowed behind those that do so, a BOS in front and after every picture.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from data.schema import UserError

ROLES = ("system", "user", "assistant")
IMAGE_TAG = re.compile(r"<\|image_(\d+)\|>")
NO_LABEL = -100
BOS = "<s>"
# Unicode's White_Space, which the tokenizer's \s means; Python's str.strip knows four more.
WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
# Rendered templates, by their messages' roles, and encodings of stretches up to so many characters that are kept: most
# conversations of a data set have the same of both.
KEPT, KEPT_LENGTH = 4096, 64
# Private characters that stand for a message's content while the template is rendered.
OPEN, CLOSE = "\ue000", "\ue001"
CONTENT = re.compile(f"{OPEN}(\\d+){CLOSE}")

Message = Mapping[str, Any]


class ConversationError(UserError):
    """Messages that cannot be rendered, or tags and pictures that do not match."""


@dataclass(slots=True)
class _Stretch:
    """Text between two special tokens, in parts that are labelled or not."""

    parts: list[tuple[str, bool]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Special:
    """A special token that the template wrote."""

    token: int
    labelled: bool


@dataclass(frozen=True, slots=True)
class _Picture:
    """The place of picture `number`, counted from 1."""

    number: int


_Item = _Stretch | _Special | _Picture


def flatten_content(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages whose content may be a list of parts → messages of plain strings.

    {"type": "image"} becomes the next number's tag and a newline, {"type": "text", "text": …} its text. Numbers count
    over the whole conversation.
    """
    flat: list[dict[str, str]] = []
    pictures = 0
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            text = ""
            for part in content:
                kind = part.get("type")
                if kind == "image":
                    pictures += 1
                    text += f"<|image_{pictures}|>\n"
                elif kind == "text":
                    text += part["text"]
                else:
                    raise ConversationError(f"message part of type {kind!r}; allowed: 'image', 'text'")
            content = text
        flat.append({"role": str(message["role"]), "content": content})
    return flat


class Conversation:
    """Encodes conversations by one tokenizer and one chat template."""

    def __init__(self, tokenizer: Tokenizer | str, template: str) -> None:
        """`tokenizer`: the model's, or the text of its tokenizer.json; `template`: jinja, in Hugging Face's form."""
        self.template = template
        self.tokenizer_json = tokenizer if isinstance(tokenizer, str) else tokenizer.to_str()
        parts = json.loads(self.tokenizer_json)
        added = {token["content"]: token for token in parts["added_tokens"]}
        self._ids = {text: int(token["id"]) for text, token in added.items()}
        self._swallows = {int(token["id"]) for token in added.values() if token["rstrip"]}
        if BOS not in self._ids:
            raise ConversationError(f"the tokenizer has no {BOS}; it is not one of this model family")
        longest_first = sorted(added, key=len, reverse=True)
        self._special = re.compile("|".join(re.escape(text) for text in longest_first))
        parts.update(added_tokens=[], post_processor=None)
        self._plain = Tokenizer.from_str(json.dumps(parts))
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        self._render = environment.from_string(template).render
        self._marked_roles = lru_cache(KEPT)(self._render_marked)
        self._short_ids = lru_cache(KEPT)(self._plain_ids)
        self._check_template()

    def __reduce__(self) -> tuple[type["Conversation"], tuple[str, str]]:
        return Conversation, (self.tokenizer_json, self.template)

    def encode(self, messages: Sequence[Message], picture_tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and labels of a whole conversation.

        Arguments: messages of roles system, user and assistant; the number of image tokens of each picture.
        Returns: input_ids int64 [T], with −k at every place of picture k; labels int64 [T], the ids of the assistant's
        words and of the token that closes them, −100 elsewhere.
        Raises ConversationError for tags without pictures, pictures without tags and other roles.
        """
        return self._assemble(self._items(messages, False), picture_tokens)

    def prompt(self, messages: Sequence[Message], picture_tokens: Sequence[int]) -> np.ndarray:
        """Token ids int64 [T] of the messages with the generation prompt behind them."""
        return self._assemble(self._items(messages, True), picture_tokens)[0]

    def count(self, messages: Sequence[Message], pictures: int) -> tuple[int, int]:
        """How many tokens a conversation has beside its image tokens, and how many of all are supervised.

        Arguments: the messages; how many pictures they name. Raises ConversationError, as `encode` does.
        """
        ids, labels = self.encode(messages, [1] * pictures)
        # The first token is nobody's next one.
        return int(np.count_nonzero(ids >= 0)), int(np.count_nonzero(labels[1:] != NO_LABEL))

    def _check_template(self) -> None:
        """A template must put contents in as they are, or ids could not be told apart from it."""
        probe = [{"role": role, "content": f" {role}: A b\n"} for role in ("user", "assistant", "user")]
        for ask in (False, True):
            rendered = self._render(messages=probe, add_generation_prompt=ask, bos_token="", eos_token="")
            marked = self._marked(probe, ask)
            if CONTENT.sub(lambda found: probe[int(found.group(1))]["content"], marked) != rendered:
                raise ConversationError(
                    "the chat template changes what messages hold; it must put contents in as they are"
                )

    def _marked(self, messages: Sequence[Message], ask: bool) -> str:
        """The rendered text with marks in place of the contents."""
        return self._marked_roles(tuple(message["role"] for message in messages), ask)

    def _render_marked(self, roles: tuple[str, ...], ask: bool) -> str:
        marks = [{"role": role, "content": f"{OPEN}{number}{CLOSE}"} for number, role in enumerate(roles)]
        return self._render(messages=marks, add_generation_prompt=ask, bos_token="", eos_token="")

    def _items(self, messages: Sequence[Message], ask: bool) -> list[_Item]:
        flat = flatten_content(messages)
        for number, message in enumerate(flat):
            if message["role"] not in ROLES:
                raise ConversationError(f"message {number}: role {message['role']!r}; allowed: {', '.join(ROLES)}")
        if not flat:
            raise ConversationError("a conversation without messages")
        items: list[_Item] = []
        # Odd pieces are the numbers of messages, even ones the template's own text.
        answered = False
        for place, piece in enumerate(CONTENT.split(self._marked(flat, ask))):
            if place % 2 == 0:
                self._add_template(items, piece, answered)
                continue
            message = flat[int(piece)]
            answered = message["role"] == "assistant"
            self._add_content(items, message["content"], answered)
        return items

    def _add_template(self, items: list[_Item], text: str, after_answer: bool) -> None:
        end = 0
        for found in self._special.finditer(text):
            _add_text(items, text[end : found.start()], False)
            closes = after_answer and end == 0 and found.start() == 0
            items.append(_Special(self._ids[found.group()], closes))
            end = found.end()
        _add_text(items, text[end:], False)

    def _add_content(self, items: list[_Item], text: str, labelled: bool) -> None:
        if labelled:
            _add_text(items, text, True)
            return
        # Odd pieces are the tags' numbers.
        for place, piece in enumerate(IMAGE_TAG.split(text)):
            if place % 2:
                items.append(_Picture(int(piece)))
            else:
                _add_text(items, piece, False)

    def _assemble(self, items: Sequence[_Item], picture_tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        numbers = {item.number for item in items if isinstance(item, _Picture)}
        if numbers != set(range(1, len(picture_tokens) + 1)):
            tags = ", ".join(f"<|image_{number}|>" for number in sorted(numbers)) or "none"
            raise ConversationError(
                f"the messages have the tags {tags} and {len(picture_tokens)} pictures are given; "
                "each picture needs its tag, numbered from 1, and each tag its picture"
            )
        bos = self._ids[BOS]
        ids, labels = [bos], [NO_LABEL]
        repeated: dict[int, int] = {}  # place in the lists → how often it stands there; a picture has thousands
        swallowing = False
        for item in items:
            if isinstance(item, _Stretch):
                more, marks = self._encode_stretch(item, swallowing)
                ids += more
                labels += [token if mark else NO_LABEL for token, mark in zip(more, marks, strict=True)]
                swallowing = False
            elif isinstance(item, _Special):
                ids.append(item.token)
                labels.append(item.token if item.labelled else NO_LABEL)
                swallowing = item.token in self._swallows
            else:
                repeated[len(ids)] = picture_tokens[item.number - 1]
                ids += [-item.number, bos]
                labels += [NO_LABEL] * 2
                swallowing = False
        counts = np.ones(len(ids), dtype=np.int64)
        counts[list(repeated)] = list(repeated.values())
        return np.array(ids, dtype=np.int64).repeat(counts), np.array(labels, dtype=np.int64).repeat(counts)

    def _encode_stretch(self, stretch: _Stretch, swallowing: bool) -> tuple[list[int], list[bool]]:
        """Ids of a stretch, and which of them reach into its labelled part."""
        text = "".join(part for part, _ in stretch.parts)
        start = len(text) - len(text.lstrip(WHITE_SPACE)) if swallowing else 0
        if len({labelled for _, labelled in stretch.parts}) == 1:
            ids = (self._short_ids if len(text) <= KEPT_LENGTH else self._plain_ids)(text[start:])
            return ids, [stretch.parts[0][1]] * len(ids)
        encoded = self._plain.encode(text[start:], add_special_tokens=False)
        spans = []
        end = 0
        for part, labelled in stretch.parts:
            if labelled:
                spans.append((end - start, end + len(part) - start))
            end += len(part)
        marks = [any(begin < stop and last > first for first, stop in spans) for begin, last in encoded.offsets]
        return encoded.ids, marks

    def _plain_ids(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special; never to be changed, they may be kept."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids


def _add_text(items: list[_Item], text: str, labelled: bool) -> None:
    """Put text behind the items, joined to a stretch that ends there."""
    if not text:
        return
    if not (items and isinstance(items[-1], _Stretch)):
        items.append(_Stretch())
    stretch = items[-1]
    assert isinstance(stretch, _Stretch)
    stretch.parts.append((text, labelled))


def _refuse(message: str) -> None:
    raise ConversationError(f"the chat template refuses these messages: {message}")
