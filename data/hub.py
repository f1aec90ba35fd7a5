"""Data sets of the Hugging Face hub, of a local cache, or saved to disk, as streams of rows."""

import os
from collections.abc import Iterator
from typing import Any

from data.entries import SourceError, Values
from data.tables import Reader


def hub_rows(where: str) -> tuple[list[str], Reader]:
    """The rows of `hf:NAME[:CONFIG][@REVISION]`, all splits one after the other, each row with the column `split`
    unless it has one. Pictures come as bytes, not decoded; from the network a row at a time, nothing stays on disk.

    Raises SourceError if it cannot be loaded.
    """
    name, config, revision = parse_name(where)
    try:
        splits = _load(name, config, revision)
    except Exception as error:  # the library raises a dozen classes for "not found", "no access" and "no network"
        raise SourceError(
            f"{where}: datasets cannot load it ({type(error).__name__}: {error}); check the name and the network "
            "(HF_HUB_OFFLINE must not be set unless it is in the local cache), or download it and name the file"
        ) from error
    undecoded = {split: _undecoded(rows) for split, rows in splits.items()}
    first = next(iter(undecoded.values()))
    columns = list(first.column_names or next(iter(first), {}))
    own = _own_places(name)

    def rows() -> Iterator[Values]:
        for split, one in undecoded.items():
            try:
                for values in one:
                    yield {"split": str(split)} | {column: _with_bytes(value, own) for column, value in values.items()}
            except Exception as error:
                if not _of_the_network(error):
                    raise
                raise SourceError(
                    f"{where}, split {split}: {type(error).__name__}: {error}; run the same command again, "
                    "what was finished is kept"
                ) from error

    return list(dict.fromkeys([*columns, "split"])), rows


def parse_name(where: str) -> tuple[str, str | None, str | None]:
    """`hf:NAME[:CONFIG][@REVISION]` as name, configuration and revision."""
    text, _, revision = where.removeprefix("hf:").partition("@")
    name, _, config = text.partition(":")
    return name, config or None, revision or None


def _load(name: str, config: str | None, revision: str | None) -> dict[str, Any]:
    """Split → rows: from a folder saved by datasets, from files, from the cache, else from the hub as it is read."""
    import datasets

    from data.places import is_file, join

    if is_file(join(name, "dataset_dict.json")) or is_file(join(name, "state.json")):
        saved = datasets.load_from_disk(name)
        return dict(saved) if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    # Offline the library takes what its cache holds, which lies there as Arrow files and is mapped, not read.
    return dict(datasets.load_dataset(name, config, revision=revision, streaming=not datasets.config.HF_HUB_OFFLINE))


def _undecoded(rows: Any) -> Any:
    """Rows whose pictures (and sounds) come as bytes."""
    import datasets

    if isinstance(rows, datasets.IterableDataset):
        return rows.decode(False)
    features = datasets.Features({name: _plain(feature) for name, feature in rows.features.items()})
    return rows if features == rows.features else rows.cast(features)


def _plain(feature: Any) -> Any:
    if hasattr(feature, "decode"):
        return type(feature)(decode=False)
    if isinstance(feature, dict):
        return {name: _plain(one) for name, one in feature.items()}
    if isinstance(feature, list):
        return [_plain(one) for one in feature]
    if hasattr(feature, "feature"):
        return type(feature)(_plain(feature.feature), length=getattr(feature, "length", -1))
    return feature


def _own_places(name: str) -> tuple[str, ...]:
    """How the names of a data set's own files start: on the hub, in the library's caches, in the folder it is."""
    import datasets
    from huggingface_hub import constants

    folders = [datasets.config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE, *([name] if os.path.isdir(name) else [])]
    return f"hf://datasets/{name}@", f"hf://datasets/{name}/", *(f"{os.path.realpath(folder)}/" for folder in folders)


def _with_bytes(value: Any, own: tuple[str, ...]) -> Any:
    """A value with the bytes of the pictures that the library only points to, as it does with folders of pictures.

    Read here, and only if they are the data set's own: a path in a row may name any file of this machine.
    """
    if isinstance(value, list):
        return [_with_bytes(one, own) for one in value]
    if not isinstance(value, dict):
        return value
    path = value.get("path")
    if set(value) != {"bytes", "path"} or value["bytes"] is not None or not isinstance(path, str):
        return {name: _with_bytes(one, own) for name, one in value.items()}
    outermost = path.rpartition("::")[2]  # zip://a.jpg::hf://… is a file in an archive
    if not (outermost if "://" in outermost else os.path.realpath(outermost)).startswith(own):
        return value
    from datasets.utils.file_utils import xopen

    with xopen(path, "rb") as stream:
        return {"bytes": stream.read(), "path": path.partition("::")[0].rpartition("/")[2]}


def _of_the_network(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in (
        "aiohttp",
        "httpx",
        "huggingface_hub",
    )
