"""Tars: their bytes, reading back, damage, and readers that are not ours."""

import hashlib
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset

from data.index import Index, IndexEntry, write_index
from data.manifest import CHAT_TEMPLATES, Manifest, ManifestError
from data.schema import Picture, Sample, image_names
from data.shards import ShardError, ShardWriter, iter_samples, parse_sample, read_sample, shard_name


def picture(data: bytes, suffix: str = "jpg") -> Picture:
    return Picture(data=data, format=suffix, width=4, height=3, sha256=hashlib.sha256(data).hexdigest(), phash=0)


def example(number: int) -> tuple[Sample, list[Picture]]:
    pictures = [picture(bytes([number]) * (number * 511 + 1)), picture(b"png" * number, "png")][: number % 3]
    tags = "".join(f"<|image_{k + 1}|>" for k in range(len(pictures)))
    sample = Sample(
        key=f"key-{number}",
        messages=({"role": "user", "content": tags + "?"}, {"role": "assistant", "content": "é"}),
        images=image_names([one.format for one in pictures]),
        target={},
        source={"row": number, "columns": {}},
    )
    return sample, pictures


def write(path: Path, count: int = 7) -> tuple[list[IndexEntry], ShardWriter]:
    with ShardWriter(path, 0) as shard:
        entries = [shard.add(*example(number), group=f"g{number}") for number in range(count)]
    return entries, shard


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    entries, shard = write(tmp_path / "a.tar")
    for number, entry in enumerate(entries):
        sample, pictures = example(number)
        assert read_sample(tmp_path / "a.tar", entry) == (sample, [one.data for one in pictures])
        assert entry.image_sizes == ((4, 3),) * len(pictures)
        assert entry.text_bytes == sum(len(message["content"].encode()) for message in sample.messages)
    content = (tmp_path / "a.tar").read_bytes()
    assert shard.bytes == len(content)
    assert shard.sha256 == hashlib.sha256(content).hexdigest()


def test_the_same_samples_are_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    write(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_tar_lists_the_json_first_and_nothing_of_this_machine(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:6]] == [
        "key-0.json", "key-1.json", "key-1.jpg", "key-2.json", "key-2.0.jpg", "key-2.1.png",
    ]  # fmt: skip
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_an_untouched_webdataset_reads_a_shard(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    read = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [one["__key__"] for one in read] == [f"key-{number}" for number in range(7)]
    for number, one in enumerate(read):
        sample, pictures = example(number)
        assert one["json"] == sample.to_json()
        assert [one[name] for name in sample.images] == [picture.data for picture in pictures]


def test_any_changed_byte_is_found_and_named(tmp_path: Path) -> None:
    entries, _ = write(tmp_path / "a.tar")
    content = (tmp_path / "a.tar").read_bytes()
    entry = entries[4]
    whole = content[entry.offset : entry.offset + entry.length]
    for place in range(0, len(whole), 97):
        broken = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        with pytest.raises(ShardError) as caught:
            parse_sample(broken, entry, tmp_path / "train" / "a.tar")
        assert (caught.value.key, caught.value.byte) == ("key-4", entry.offset)
        assert "data.verify" in str(caught.value)
    with pytest.raises(ShardError, match="ends after 10 of"):
        parse_sample(whole[:10], entry, tmp_path / "a.tar")


def test_a_shard_that_is_cut_or_gone_is_a_shard_error(tmp_path: Path) -> None:
    entries, _ = write(tmp_path / "a.tar")
    with (tmp_path / "a.tar").open("r+b") as tar:
        tar.truncate(entries[-1].offset + 100)
    assert read_sample(tmp_path / "a.tar", entries[0])
    with pytest.raises(ShardError, match="ends after 100 of"):
        read_sample(tmp_path / "a.tar", entries[-1])
    with pytest.raises(ShardError, match="cannot be read"):
        read_sample(tmp_path / "b.tar", entries[0])


def test_an_index_of_another_sample_is_a_shard_error(tmp_path: Path) -> None:
    entries, _ = write(tmp_path / "a.tar")
    with pytest.raises(ShardError):
        read_sample(tmp_path / "a.tar", replace(entries[1], members=entries[2].members))


def test_a_shard_whose_writing_fails_is_not_there(tmp_path: Path) -> None:
    sample, pictures = example(1)
    with pytest.raises(ValueError, match="argument"), ShardWriter(tmp_path / "a.tar", 0) as shard:
        shard.add(sample, pictures + pictures, group="")
    assert list(tmp_path.iterdir()) == []


def test_a_split_is_read_in_order(tmp_path: Path) -> None:
    entries, shard = write(tmp_path / "train" / shard_name(0))
    write_index(tmp_path / "train" / "index.arrow", entries)
    manifest = Manifest(
        counts={"train": {"samples": 7, "pictures": 7, "bytes": shard.bytes}},
        split_rule={},
        build={},
        chat_template={"name": "bare", "template": CHAT_TEMPLATES["bare"]},
        answer_template=None,
        question=None,
        fields={},
        shards={"train": [{"name": shard_name(0), "bytes": shard.bytes, "sha256": shard.sha256, "samples": 7}]},
        rejected={},
        leaks_prevented=0,
    )
    manifest.save(tmp_path)
    assert [sample for sample, _ in iter_samples(tmp_path, "train")] == [example(number)[0] for number in range(7)]
    assert len(Index.open(tmp_path / "train" / "index.arrow")) == 7
    with pytest.raises(ManifestError, match="no split 'test', only train"):
        next(iter_samples(tmp_path, "test"))
