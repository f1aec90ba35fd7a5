"""Messages between a rank and its workers."""

import os

import numpy as np
import pytest

from train.pipeline.passing import channel, receive, send


def test_values_and_arrays_arrive_as_sent_and_can_be_written_to():
    ours, theirs = channel()
    arrays = {
        "ids": np.arange(5, dtype=np.int64),
        "crops": np.random.default_rng(0).integers(0, 255, (2, 3, 7, 7)).astype(np.uint8),
        "none": np.zeros((0, 2), np.int64),
        "strided": np.arange(10)[::2],
    }
    send(theirs, {"keys": ("a", "ключ")}, arrays)
    value, received = receive(ours)
    assert value == {"keys": ("a", "ключ")}
    for name, array in arrays.items():
        assert received[name].dtype == array.dtype
        assert np.array_equal(received[name], array)
        received[name][...] = 1


def test_messages_keep_their_order_and_leave_no_descriptor_open():
    ours, theirs = channel()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        send(theirs, number, {"block": np.full(300_000, number, np.uint8)})
    for number in range(20):
        value, arrays = receive(ours)
        assert value == number
        assert set(arrays["block"]) == {number}
    del arrays
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_end_of_the_other_side_is_an_error_on_both_ways():
    ours, theirs = channel()
    theirs.close()
    with pytest.raises(EOFError):
        receive(ours)
    with pytest.raises(OSError, match="Broken pipe"):
        send(ours, "anybody there?")
