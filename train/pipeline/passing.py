"""Between a rank and a worker: short messages as JSON, packs in shared memory that goes back and forth.

Shared memory is anonymous memory files whose descriptors go over a Unix socket. They have no name, so nothing is left
behind when either side is killed, and they do not count against a container's /dev/shm. A worker writes a pack into a
block, lends it to its rank, and writes into it again once the rank's last array in it is gone, which the block's first
byte says: pages that the kernel has handed out once are many times quicker to write to than new ones.
"""

import json
import math
import mmap
import os
import socket
import struct
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_LENGTH = struct.Struct("<Q")
_LOAN = struct.Struct("<QQQQ")  # number of the block, bytes of it that are mapped, where its text begins, its bytes
ALIGNMENT = 64
HEAD = ALIGNMENT  # bytes of a block before its arrays; the first says whether the rank looks at them
LENT, RETURNED = 1, 0
MEBIBYTE = 2**20


def channel() -> tuple[socket.socket, socket.socket]:
    """A connected pair of sockets that keep messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, value: object) -> None:
    """Send plain values (what JSON has) of any size.

    The text goes in a memory file of its own, so that no sender ever waits for a receiver that itself is sending.

    Raises:
        OSError: the other side is gone.
    """
    text = json.dumps(value, ensure_ascii=False).encode()
    memory = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        _write(memory, text, 0)
        socket.send_fds(end, [_LENGTH.pack(len(text))], [memory])
    finally:
        os.close(memory)


def receive(end: socket.socket) -> Any:
    """Wait for what `send` sent.

    Raises:
        EOFError: the other side is gone.
    """
    header, descriptor = _receive(end, _LENGTH.size)
    assert descriptor is not None
    with open(descriptor, "rb") as stream:
        return json.loads(stream.read(_LENGTH.unpack(header)[0]))


def _receive(end: socket.socket, size: int) -> tuple[bytes, int | None]:
    try:
        header, descriptors, _, _ = socket.recv_fds(end, size, 1, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError as error:
        raise EOFError("the other side is gone") from error
    if not header:
        raise EOFError("the other side is gone")
    return header, descriptors[0] if descriptors else None


def _write(descriptor: int, content: bytes, at: int) -> None:
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, content[written:], at + written)


class Layout:
    """Lays arrays out one behind the other in a block."""

    def __init__(self, memory: Bytes) -> None:
        self.memory = memory
        self.at = 0

    @staticmethod
    def size(*arrays: tuple[tuple[int, ...], Any]) -> int:
        """Bytes that arrays of these shapes and dtypes take, in any order."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize + ALIGNMENT for shape, dtype in arrays)

    def array(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """The next array; its values are whatever the memory holds."""
        start = -(-self.at // ALIGNMENT) * ALIGNMENT
        self.at = start + math.prod(shape) * np.dtype(dtype).itemsize
        if self.at > len(self.memory):
            raise ValueError(f"an array of {shape} ends at byte {self.at} of a block of {len(self.memory)}")
        return self.memory[start : self.at].view(dtype).reshape(shape)


@dataclass(frozen=True, slots=True)
class Block:
    """Shared memory, mapped here."""

    number: int
    descriptor: int
    memory: mmap.mmap

    def close(self) -> None:
        """Forget it; its pages go with the last array in it, here and on the other side."""
        os.close(self.descriptor)


class Lender:
    """The worker's side: takes blocks, lends them out filled, has them given back."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._free: list[Block] = []
        self._lent: list[Block] = []
        self._shown: set[int] = set()
        """Blocks whose descriptors the rank has."""
        self._taken: Block | None = None
        self._made = 0
        self._dropped: list[int] = []
        self._largest = 0

    def take(self, size: int) -> Bytes:
        """At least `size` bytes of memory for the next loan; what was taken before it and not lent is taken anew."""
        if self._taken:
            self._free.append(self._taken)
        returned = [block for block in self._lent if block.memory[0] == RETURNED]
        self._lent = [block for block in self._lent if block not in returned]
        self._free += returned
        self._largest = max(self._largest, size)
        # The one used last: parts of it may still be in the processor's cache.
        found = next((block for block in reversed(self._free) if len(block.memory) >= HEAD + size), None)
        if found:
            self._free.remove(found)
        else:
            # A block that is too small makes room for one that would have done for all so far.
            if self._free:
                self._drop(self._free.pop(0))
            found = self._make(self._largest)
        self._taken = found
        return np.frombuffer(found.memory, np.uint8)[HEAD:]

    def lend(self, text: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Hand over plain values, and arrays that lie in the memory taken.

        Raises:
            OSError: the rank is gone.
        """
        block = self._taken or self._make(MEBIBYTE)
        self._taken = None
        start = _address(np.frombuffer(block.memory, np.uint8))
        places = {
            name: (array.dtype.str, array.shape, _address(array) - start if array.size else HEAD)
            for name, array in arrays.items()
        }
        end = max((at + arrays[name].nbytes for name, (_, _, at) in places.items()), default=HEAD)
        content = json.dumps({"text": text, "arrays": places, "dropped": self._dropped}, ensure_ascii=False).encode()
        self._dropped = []
        _write(block.descriptor, content, end)
        block.memory[0] = LENT
        header = _LOAN.pack(block.number, len(block.memory), end, len(content))
        socket.send_fds(self._end, [header], [] if block.number in self._shown else [block.descriptor])
        self._shown.add(block.number)
        self._lent.append(block)

    def _make(self, size: int) -> Block:
        size = -(-(HEAD + size) // MEBIBYTE) * MEBIBYTE
        descriptor = os.memfd_create("packs", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size)
        self._made += 1
        return Block(self._made, descriptor, mmap.mmap(descriptor, size))

    def _drop(self, block: Block) -> None:
        self._dropped.append(block.number)
        self._shown.discard(block.number)
        block.close()


class Borrower:
    """The rank's side: receives loans, and gives each back when it is no longer looked at."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._blocks: dict[int, Block] = {}

    def receive(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Wait for a loan: plain values, and arrays in shared memory that may be written to.

        The memory is the receiver's until the last of the arrays is gone.

        Raises:
            EOFError: the worker is gone.
        """
        header, descriptor = _receive(self._end, _LOAN.size)
        number, size, text_at, text_size = _LOAN.unpack(header)
        if descriptor is not None:
            self._blocks[number] = Block(number, descriptor, mmap.mmap(descriptor, size))
        block = self._blocks[number]
        content = json.loads(_read(block.descriptor, text_size, text_at))
        for dropped in content["dropped"]:
            self._blocks.pop(dropped).close()
        # All arrays have this one as their base; it goes with the last of them.
        whole = np.frombuffer(block.memory, np.uint8)
        weakref.finalize(whole, block.memory.__setitem__, 0, RETURNED).atexit = False
        arrays = {
            name: whole[at : at + math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
            for name, (dtype, shape, at) in content["arrays"].items()
        }
        return content["text"], arrays

    def close(self) -> None:
        """Forget all blocks; arrays that are still looked at stay as they are."""
        while self._blocks:
            self._blocks.popitem()[1].close()


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _read(descriptor: int, size: int, at: int) -> bytes:
    content = b""
    while len(content) < size:
        content += os.pread(descriptor, size - len(content), at + len(content))
    return content
