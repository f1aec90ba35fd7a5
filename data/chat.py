"""Conversations in the forms that people have them in → messages with numbered image tags, and their pictures."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from data.schema import IMAGE_TAG

PLACEHOLDER = "<image>"
_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_REFERENCES = ("image", "image_url", "url", "path", "bytes")


class ChatError(ValueError):
    """What should be a conversation is none that is known."""


@dataclass(slots=True)
class Chat:
    """A conversation being read."""

    messages: list[dict[str, str]] = field(default_factory=list)
    """Of roles system, user, assistant; contents are text with <|image_k|>."""
    inside: list[Any] = field(default_factory=list)
    """The pictures that the conversation itself names (path, URL or bytes), numbered behind the row's own."""
    listed: int = 0
    """Pictures that the row lists beside the conversation: numbers 1 … listed."""
    used: int = 0
    """How many of those the text has named so far."""

    def tag(self, picture: Any = None) -> str:
        """The tag of a picture that the conversation names; without one, of the next that the row lists."""
        if picture is not None:
            self.inside.append(picture)
            return f"<|image_{self.listed + len(self.inside)}|>"
        self.used += 1
        if self.used > self.listed:
            raise ChatError(f"the text names {self.used} pictures, the row has {self.listed}")
        return f"<|image_{self.used}|>"

    def add(self, role: Any, content: Any, pictures: Sequence[Any] = ()) -> None:
        """Add a turn; `pictures` are its own, in the order of its placeholders."""
        name = _ROLES.get(role) if isinstance(role, str) else None
        if name is None:
            raise ChatError(f"role {role!r}; known are {', '.join(_ROLES)}")
        parts = [content] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise ChatError(f"a {name} turn whose content is {type(content).__name__}, not text or a list of parts")
        waiting = list(pictures)
        text = "".join(self._part(one, name, waiting) for one in parts)
        ahead = "".join(f"{self.tag(one)}\n" for one in waiting)
        self.messages.append({"role": name, "content": ahead + text})

    def _part(self, part: Any, role: str, waiting: list[Any]) -> str:
        if isinstance(part, str) or (isinstance(part, dict) and part.get("type", "text") == "text"):
            text = part if isinstance(part, str) else part.get("text") or ""
            if not isinstance(text, str):
                raise ChatError(f"a text part that holds a {type(text).__name__}")
            if role == "assistant":
                return text
            first, *others = text.split(PLACEHOLDER)
            return first + "".join(self.tag(waiting.pop(0) if waiting else None) + one for one in others)
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind not in ("image", "image_url") or role == "assistant":
            raise ChatError(f"a part of type {kind!r} in a {role} turn; known are 'text', and 'image' in what is asked")
        return self.tag(_reference(part)) + "\n"


def _reference(part: Mapping[str, Any]) -> Any:
    """Where a part's picture is; None if the row lists it."""
    found = next((part[name] for name in _REFERENCES if part.get(name) is not None), None)
    if isinstance(found, dict) and "url" in found:
        return found["url"]
    return found


def read_chat(value: Any, listed: int) -> Chat:
    """Read a conversation.

    Known forms: a list of turns with `role` and `content` (text with <image> or <|image_k|>, or a list of parts of type
    text and image), with `from` and `value` (LLaVA), or with `user`, `assistant` and their `images` (the Phi-3
    cookbook); or the JSON text of such a list.
    Arguments: the column's value; how many pictures the row lists beside it.
    Raises ChatError.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ChatError(f"text that is not the JSON of a conversation: {error}") from error
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise ChatError(f"a {type(value).__name__}, not a list of turns")
    chat = Chat(listed=listed)
    for turn in value:
        pictures = turn.get("images") or []
        if not isinstance(pictures, list):
            pictures = [pictures]
        if "user" in turn and "assistant" in turn:
            chat.add("user", turn["user"], pictures)
            chat.add("assistant", turn["assistant"])
        elif turn.get("role") is not None:
            chat.add(turn["role"], turn.get("content"), pictures)
        elif "from" in turn:
            chat.add(turn["from"], turn.get("value"), pictures)
        else:
            raise ChatError(f"a turn with {', '.join(map(repr, turn)) or 'nothing'}; it needs role and content")
    _place_the_unnamed(chat)
    if chat.messages[-1]["role"] != "assistant":
        raise ChatError("it does not end with an answer of the assistant")
    return chat


def _place_the_unnamed(chat: Chat) -> None:
    """Pictures that no text names stand in front of the first question, as their authors' own tools place them."""
    asked = [message for message in chat.messages if message["role"] != "assistant"]
    if any(int(number) <= chat.listed for message in asked for number in IMAGE_TAG.findall(message["content"])):
        return  # what is still missing is counted when the sample is made
    first = next((message for message in chat.messages if message["role"] == "user"), None)
    if first is None:
        raise ChatError("nobody asks anything in it")
    first["content"] = "".join(f"<|image_{number}|>\n" for number in range(1, chat.listed + 1)) + first["content"]


def picture_values(values: Mapping[str, Any], columns: Sequence[str], chat: str | None) -> list[Any]:
    """A row's pictures in the order of <|image_1|>, <|image_2|>, …: first those of its picture columns, of which each
    may hold one or a list, then those that its conversation names.

    A conversation that cannot be read names none: the row is set aside when it is mapped.
    """
    found: list[Any] = []
    for column in columns:
        found += listed_pictures(values.get(column), required=chat is None)
    if chat:
        with suppress(ChatError):
            found += read_chat(values.get(chat), len(found)).inside
    return found


def listed_pictures(value: Any, required: bool) -> list[Any]:
    """What a picture column holds as a list; a row that must have a picture keeps its empty cell as one."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = None
        value = parsed if isinstance(parsed, list) else value
    if isinstance(value, list):
        return value or ([None] if required else [])
    return [] if value in (None, "") and not required else [value]


def inline_pictures(messages: list[dict[str, str]], pictures: list[Any], listed: int) -> list[dict[str, Any]]:
    """Messages whose turns hold the pictures behind the first `listed` themselves: what `read_chat` reads back."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        own: list[Any] = []

        def place(found: re.Match[str], own: list[Any] = own) -> str:
            if int(found[1]) <= listed:
                return found[0]
            own.append(pictures[int(found[1]) - 1])
            return PLACEHOLDER

        asked = message["role"] != "assistant"
        turns.append({**message, "content": IMAGE_TAG.sub(place, message["content"]) if asked else message["content"]})
        if own:
            turns[-1]["images"] = own
    return turns
