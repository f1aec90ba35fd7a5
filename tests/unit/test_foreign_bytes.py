"""Whatever bytes come, readers raise the errors they declare and no others."""

from contextlib import suppress
from pathlib import Path

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.images import PictureError, check_picture, open_picture
from data.index import Index, IndexEntry, IndexFileError, Member, write_index
from data.schema import Picture, Sample
from data.shards import ShardError, ShardWriter, parse_sample, read_sample
from tests.factories.hostile_pictures import drawn, encoded

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
WHOLE = [encoded(drawn(60, 40), kind) for kind in KINDS]
MANY = settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEW = settings(MANY, max_examples=60)


@st.composite
def spoiled(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with some places changed, cut, or with a piece put in."""
    data = bytearray(whole)
    for place, value in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=20)):
        data[place] = value
    cut = draw(st.integers(0, len(data)))
    return bytes(data[:cut]) + draw(st.binary(max_size=30)) + (bytes(data[cut:]) if draw(st.booleans()) else b"")


def sniff(data: bytes) -> None:
    for look in (check_picture, open_picture):
        with suppress(PictureError):
            look(data)


PICTURES = st.one_of(st.binary(max_size=200), st.sampled_from(WHOLE).flatmap(spoiled))


@FEW
@given(data=PICTURES)
def test_any_bytes_are_a_picture_or_a_picture_error(data: bytes) -> None:
    sniff(data)


@pytest.mark.soak
@MANY
@given(data=PICTURES)
def test_very_many_bytes_are_a_picture_or_a_picture_error(data: bytes) -> None:
    sniff(data)


def written(folder: Path) -> list[IndexEntry]:
    sample = Sample(
        key="a", messages=({"role": "user", "content": "<|image_1|>?"},), images=("jpg",), target={}, source={}
    )
    picture = Picture(data=WHOLE[0], format="jpg", width=60, height=40, sha256="", phash=0)
    with ShardWriter(folder / "a.tar", 0) as shard:
        entries = [shard.add(sample, [picture], group="g")]
    write_index(folder / "index.arrow", entries)
    return entries


numbers = st.integers(-(2**62), 2**62) | st.integers(-3, 3000)
members = st.lists(
    st.builds(Member, name=st.sampled_from(["json", "jpg", ""]), offset=numbers, size=numbers), max_size=3
).map(tuple)


@FEW
@given(data=st.data())
def test_any_bytes_are_a_sample_or_a_shard_error(data: st.DataObject, tmp_path: Path) -> None:
    (entry,) = written(tmp_path)
    whole = (tmp_path / "a.tar").read_bytes()[: entry.length]
    for buffer in (whole, data.draw(spoiled(whole))):
        other = IndexEntry(
            key="a",
            shard=0,
            offset=data.draw(st.sampled_from([entry.offset, 1, 512])),
            length=len(buffer),
            members=data.draw(members | st.just(entry.members)),
            xxh3=data.draw(st.sampled_from([entry.xxh3, xxhash.xxh3_64_intdigest(buffer)])),
            image_sizes=entry.image_sizes,
            text_bytes=0,
        )
        with suppress(ShardError):
            parse_sample(buffer, other, tmp_path / "a.tar")


@FEW
@given(data=st.data())
def test_any_bytes_are_an_index_or_an_index_error(data: st.DataObject, tmp_path: Path) -> None:
    written(tmp_path)
    whole = (tmp_path / "index.arrow").read_bytes()
    (tmp_path / "b.arrow").write_bytes(data.draw(spoiled(whole)))
    try:
        index = Index.open(tmp_path / "b.arrow")
        entries = [index.entry(number) for number in range(len(index))]
    except IndexFileError:
        return
    for entry in entries:
        with suppress(ShardError):
            read_sample(tmp_path / "a.tar", entry)
