"""manifest.json: what a folder of shards holds and how it was built; written last, so it stands for a whole folder."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from data.schema import UserError
from data.whole import write_whole

FORMAT_VERSION = 1
# Beside a manifest and indexes that were copied from elsewhere, and says from where; the shards were not.
REMOTE_FILE = "remote.json"
KINDS = ("text", "category", "number")
# Hugging Face's form. "phi3v" is the published one; "bare" is the walkthrough's: nothing after <|end|>.
_TURNS = (
    "{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>%s' }}"
    "{% endfor %}"
)
_PROMPT = "{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}{{- '<|assistant|>\n' -}}{% endif %}"
CHAT_TEMPLATES = {
    "phi3v": _TURNS.replace("%s", "\n") + _PROMPT,
    "bare": _TURNS.replace("%s", "") + _PROMPT,
}


class ManifestError(UserError):
    """A folder that is not a whole folder of shards of this format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a folder of shards holds."""

    counts: dict[str, dict[str, int]]
    """Split → {"samples", "pictures", "bytes"}."""
    split_rule: dict[str, Any]
    build: dict[str, Any]
    """The configuration that, with the same rows and pictures, gives the same bytes."""
    chat_template: dict[str, str]
    """{"name": "bare" | "phi3v", "template": Jinja in Hugging Face's form}."""
    answer_template: str | None
    """The assistant's text in terms of the target fields: "Product: {title}, …"."""
    question: str | None
    """The user's text, its image tags included."""
    fields: dict[str, str]
    """Target field → text | category | number."""
    shards: dict[str, list[dict[str, Any]]]
    """Split → [{"name", "bytes", "sha256", "samples"}], in the order of the index."""
    rejected: dict[str, int]
    """Reason → rows."""
    leaks_prevented: int
    """Rows that would have stood in another split than the rest of their group."""
    tokenizer_hash: str | None = None
    """SHA-256 of the tokenizer.json that counted the index's tokens."""
    format_version: int = FORMAT_VERSION

    def save(self, folder: Path) -> None:
        """Write manifest.json, whole or not at all."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        write_whole(Path(folder) / "manifest.json", text.encode())

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read a folder's manifest. Raises ManifestError if there is none, or it is damaged or of another version."""
        path = Path(folder) / "manifest.json"
        try:
            record = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            what = "has no manifest.json" if Path(folder).is_dir() else "is not there"
            raise ManifestError(
                f"{folder} {what}: it is not a finished folder of shards; build one: "
                f"python -m data.build --preset NAME --source FILE --output {folder}"
            ) from error
        except ValueError as error:
            raise ManifestError(
                f"{path} is damaged ({error}); build the shards again, what is whole is kept"
            ) from error
        version = record.get("format_version") if isinstance(record, dict) else None
        if version != FORMAT_VERSION:
            raise ManifestError(
                f"{path} is of format version {version}, this program reads {FORMAT_VERSION}; build the shards again "
                "with it, or use the program's version that built them"
            )
        names = {field.name for field in fields(cls)}
        if set(record) != names:
            missing, unknown = sorted(names - set(record)), sorted(set(record) - names)
            raise ManifestError(f"{path}: entries missing: {missing}, unknown: {unknown}; build the shards again")
        return cls(**record)

    def check_shards(self, folder: Path, split: str, full: bool = False) -> None:
        """Check that a split's shards are there with the manifest's sizes; `full`: and hashes (reads every byte).

        Raises ManifestError naming the first file that is not as the manifest says.
        """
        if split not in self.shards:
            raise ManifestError(f"{folder}/manifest.json has no split {split!r}, only {', '.join(sorted(self.shards))}")
        mend = "bring the file back, or build the shards again (what is whole is kept)"
        for shard in self.shards[split] if not (Path(folder) / REMOTE_FILE).is_file() else ():
            path = Path(folder) / split / shard["name"]
            if not path.is_file():
                raise ManifestError(f"{path} is missing; {mend}")
            if path.stat().st_size != shard["bytes"]:
                raise ManifestError(
                    f"{path} has {path.stat().st_size:,} bytes, the manifest says {shard['bytes']:,}; {mend}"
                )
            if full and file_sha256(path) != shard["sha256"]:
                raise ManifestError(f"{path}: its SHA-256 is not the manifest's; {mend}")
        if not (Path(folder) / split / "index.arrow").is_file():
            raise ManifestError(f"{folder}/{split}/index.arrow is missing; {mend}")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
