"""Tokens counted into the index while shards are written, so that a training of that tokenizer need not count."""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from data.index import IndexEntry
from data.schema import Sample, UserError

if TYPE_CHECKING:
    from data.conversation import Conversation


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenizer and a chat template; small, so that it travels to workers."""

    file: str
    """tokenizer.json"""
    sha256: str
    """Of that file."""
    template: str

    @classmethod
    def of(cls, folder: Path, template: str) -> "Tokens":
        """The tokenizer of a model folder. Raises UserError if there is none that can be read."""
        file = folder / "tokenizer.json" if folder.is_dir() else folder
        try:
            tokens = cls(str(file.resolve()), hashlib.sha256(file.read_bytes()).hexdigest(), template)
            tokens.conversation()
        except OSError as error:
            raise UserError(
                f"{file}: {error.strerror}; --tokenizer names a model's folder with a tokenizer.json in it"
            ) from error
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        except Exception as error:  # the library raises plain Exception for what is no tokenizer
            raise UserError(f"{file} is no tokenizer of the tokenizers library: {error}") from error
        return tokens

    @property
    def fingerprint(self) -> str:
        """Of all that decides the counts."""
        return hashlib.sha256(f"{self.sha256}{self.template}".encode()).hexdigest()

    def conversation(self) -> "Conversation":
        """The encoder; made once a process."""
        return _conversation(self)

    def counted(self, entry: IndexEntry, sample: Sample) -> IndexEntry:
        """An index entry with its sample's counts."""
        text, labels = self.conversation().count(sample.messages, len(sample.images))
        return replace(entry, text_tokens=text, label_tokens=labels)


@lru_cache(maxsize=1)
def _conversation(tokens: Tokens) -> "Conversation":
    from data.conversation import Conversation  # brings tokenizers and jinja, for which most builds need not wait

    return Conversation(Path(tokens.file).read_text("utf-8"), tokens.template)
