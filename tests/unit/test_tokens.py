"""Tokens in the index: what the builder counts is what a training of that tokenizer counts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.build import build
from data.build_options import BuildSettings
from data.index import Index
from data.manifest import Manifest
from data.schema import UserError
from data.tokens import Tokens
from tests.factories.small_shards import write_tokenizer
from train.pipeline.corpus import ShardSet
from train.pipeline.lengths import counted_text
from train.pipeline.sharing import Alone

MAPPING = """
prompt: What is {name}?
answer: "{title} <|end|>"
split: {fractions: {train: 1.0}}
"""


def test_counted_tokens_are_those_a_training_counts(tmp_path: Path) -> None:
    (tmp_path / "mapping.yaml").write_text(MAPPING)
    (tmp_path / "rows.csv").write_text("name,title\n" + "".join(f"n{n},{'外套 ' * n}t\n" for n in range(30)))
    tokenizer = write_tokenizer(tmp_path / "model" / "tokenizer.json")
    settings = BuildSettings(
        preset=str(tmp_path / "mapping.yaml"),
        source=str(tmp_path / "rows.csv"),
        output=tmp_path / "out",
        workers=0,
        max_rejected=1.0,
    )
    build(settings)
    assert Manifest.load(tmp_path / "out").tokenizer_hash is None
    build(replace(settings, tokenizer=tmp_path / "model"))
    manifest, index = Manifest.load(tmp_path / "out"), Index.open(tmp_path / "out/train/index.arrow")
    shards = manifest.shards["train"]
    names = tuple(shard["name"] for shard in shards)
    text, labels = counted_text(
        ShardSet(folder=tmp_path / "out/train", shard_names=names, samples=len(index)),
        index,
        [shard["sha256"] for shard in shards],
        tokenizer_file=tokenizer,
        tokenizer_hash=manifest.tokenizer_hash or "",
        template=manifest.chat_template["template"],
        cache=None,
        ranks=Alone(),
    )
    np.testing.assert_array_equal(index.text_tokens, text)
    np.testing.assert_array_equal(index.label_tokens, labels)
    assert len(set(text.tolist())) == 30
    assert not build(replace(settings, tokenizer=tmp_path / "model")).changed


def test_a_folder_without_a_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--tokenizer names"):
        Tokens.of(tmp_path, "")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer"):
        Tokens.of(tmp_path, "{{ messages }}")
