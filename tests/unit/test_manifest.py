"""manifest.json: kept, checked against its files, and refused when of another version."""

import json
from pathlib import Path

import jinja2
import pytest

from data.manifest import CHAT_TEMPLATES, Manifest, ManifestError, file_sha256


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "shard-000000.tar").write_bytes(b"tar" * 100)
    (tmp_path / "train" / "index.arrow").write_bytes(b"")
    sha256 = file_sha256(tmp_path / "train" / "shard-000000.tar")
    made = Manifest(
        counts={"train": {"samples": 2, "pictures": 2, "bytes": 300}},
        split_rule={"by": "product"},
        build={"limit": None},
        chat_template={"name": "bare", "template": CHAT_TEMPLATES["bare"]},
        answer_template="{title}",
        question="<|image_1|>?",
        fields={"title": "text"},
        shards={"train": [{"name": "shard-000000.tar", "bytes": 300, "sha256": sha256, "samples": 2}]},
        rejected={"empty": 1},
        leaks_prevented=3,
    )
    made.save(tmp_path)
    return made


def test_a_manifest_comes_back(tmp_path: Path, manifest: Manifest) -> None:
    assert Manifest.load(tmp_path) == manifest
    manifest.check_shards(tmp_path, "train", full=True)


def test_a_shard_missing_cut_or_changed_is_named(tmp_path: Path, manifest: Manifest) -> None:
    shard = tmp_path / "train" / "shard-000000.tar"
    shard.write_bytes(b"tax" * 100)
    manifest.check_shards(tmp_path, "train")
    with pytest.raises(ManifestError, match="SHA-256"):
        manifest.check_shards(tmp_path, "train", full=True)
    shard.write_bytes(b"tar")
    with pytest.raises(ManifestError, match="3 bytes, the manifest says 300"):
        manifest.check_shards(tmp_path, "train")
    shard.unlink()
    with pytest.raises(ManifestError, match=r"shard-000000\.tar is missing"):
        manifest.check_shards(tmp_path, "train")


def test_an_index_missing_and_a_split_unknown_are_named(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "train" / "index.arrow").unlink()
    with pytest.raises(ManifestError, match=r"index\.arrow is missing"):
        manifest.check_shards(tmp_path, "train")
    with pytest.raises(ManifestError, match="'test', only train"):
        manifest.check_shards(tmp_path, "test")


def test_another_version_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(ManifestError, match="format version 99, this program reads 1"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 1}', '{"format_version": 1, "surprise": 0}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ManifestError):
        Manifest.load(tmp_path)


def test_a_folder_without_one_says_how_to_build(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"no manifest\.json.*data\.build"):
        Manifest.load(tmp_path)
    with pytest.raises(ManifestError, match="is not there"):
        Manifest.load(tmp_path / "none")


def test_the_bare_template_is_the_walkthroughs_text() -> None:
    template = jinja2.Template(CHAT_TEMPLATES["bare"])
    user, answer = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    assert template.render(messages=[user, answer]) == "<|user|>\nQ<|end|><|assistant|>\nA<|end|>"
    assert template.render(messages=[user], add_generation_prompt=True) == "<|user|>\nQ<|end|><|assistant|>\n"


def test_the_published_template_is_kept_to_the_letter(material: Path) -> None:
    published = json.loads((material / "phi3v/tokenizer/tokenizer_config.json").read_text())["chat_template"]
    assert CHAT_TEMPLATES["phi3v"] == published
