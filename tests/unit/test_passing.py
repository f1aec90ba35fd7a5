"""Messages and packs between a rank and its workers."""

import gc
import os

import numpy as np
import pytest

from train.pipeline.passing import Borrower, Layout, Lender, channel, receive, send


def test_messages_of_any_size_arrive_as_sent_and_leave_no_descriptor_open():
    ours, theirs = channel()
    before = len(os.listdir("/proc/self/fd"))
    messages = [{"keys": ["a", "ключ"]}, 3, ["x" * 3_000_000, None, 0.5]]
    for message in messages:
        send(theirs, message)
    assert [receive(ours) for _ in messages] == messages
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_end_of_the_other_side_is_an_error_on_both_ways():
    ours, theirs = channel()
    theirs.close()
    with pytest.raises(EOFError):
        receive(ours)
    with pytest.raises(EOFError):
        Borrower(ours).receive()
    with pytest.raises(OSError, match="Broken pipe"):
        send(ours, "anybody there?")


def lend(lender: Lender, number: int, bytes_: int = 300_000) -> None:
    room = Layout(lender.take(Layout.size(((bytes_,), np.uint8), ((5,), np.int64), ((0, 2), np.int64))))
    arrays = {"crops": room.array((bytes_,), np.uint8), "ids": room.array((5,), np.int64)}
    arrays["crops"][:], arrays["ids"][:] = number, number
    lender.lend({"key": f"ключ {number}"}, arrays | {"none": room.array((0, 2), np.int64)})


def test_a_loan_arrives_as_it_was_written_and_can_be_written_to():
    ours, theirs = channel()
    lend(Lender(theirs), 7)
    text, arrays = Borrower(ours).receive()
    assert text == {"key": "ключ 7"}
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        "crops": (np.uint8, (300_000,)),
        "ids": (np.int64, (5,)),
        "none": (np.int64, (0, 2)),
    }
    assert (arrays["crops"] == 7).all()
    assert (arrays["ids"] == 7).all()
    arrays["ids"][...] = 1


def test_memory_is_written_to_again_only_when_the_last_array_in_it_is_gone():
    ours, theirs = channel()
    lender, borrower = Lender(theirs), Borrower(ours)
    lend(lender, 1)
    lend(lender, 2)
    first, second = borrower.receive()[1], borrower.receive()[1]
    kept = first["crops"][10:20]
    del first
    del second
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(3, 9):
        lend(lender, number)
        arrays = borrower.receive()[1]
        assert (arrays["crops"] == number).all()
        del arrays
    assert set(kept) == {1}
    assert len(os.listdir("/proc/self/fd")) == descriptors, "later loans took new memory"


def test_a_pack_larger_than_all_before_gets_memory_in_place_of_smaller():
    ours, theirs = channel()
    lender, borrower = Lender(theirs), Borrower(ours)
    before = len(os.listdir("/proc/self/fd"))
    for size in (1_000, 3_000_000, 9_000_000, 2_000):
        lend(lender, 5, size)
        arrays = borrower.receive()[1]
        assert arrays["crops"].shape == (size,)
        assert (arrays["crops"] == 5).all()
        del arrays
    assert len(os.listdir("/proc/self/fd")) == before + 4, "one block: a descriptor and a mapping on either side"


def test_a_loan_outlives_what_it_was_taken_by():
    ours, theirs = channel()
    lender, borrower = Lender(theirs), Borrower(ours)
    lend(lender, 4)
    arrays = borrower.receive()[1]
    borrower.close()
    del lender, borrower
    gc.collect()
    assert (arrays["crops"] == 4).all()
