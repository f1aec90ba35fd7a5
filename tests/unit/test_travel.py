"""Dataclasses that go to other processes as bare values: they arrive as they were."""

import pickle
from dataclasses import FrozenInstanceError, fields

import pytest

from data.checking import CheckJob
from data.ledger import Found, Lost
from data.travel import made

ONES = [
    CheckJob(url="http://shop.example/ü.jpg", path="/a/b", offset=7, bytes=None, ours=True, asked=2**64 - 1),
    Lost(url="u", reason="timeout", detail="d", asked=1, host="h", robots="none", attempts=3),
    Found(
        url="u", place="volumes/000001.pictures", offset=9, format="jpg", bytes=8, sha256="s", phash=2**63, width=1,
        height=2, mtime_ns=3, attempts=4, host="h", robots="none", asked=5, look=b"\0" * 9,
    ),
]  # fmt: skip


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("one", ONES, ids=lambda one: type(one).__name__)
def test_they_arrive_as_they_were(one: object, protocol: int) -> None:
    arrived = pickle.loads(pickle.dumps(one, protocol))
    assert arrived == one
    assert type(arrived) is type(one)
    assert hash(arrived) == hash(one)
    with pytest.raises(FrozenInstanceError):
        arrived.url = "another"


def test_one_is_made_of_its_fields_in_their_order() -> None:
    found = ONES[2]
    assert made(Found, tuple(getattr(found, field.name) for field in fields(Found))) == found
    with pytest.raises(ValueError, match="zip"):
        made(Found, ("u",))
