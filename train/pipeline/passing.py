"""Messages between a rank and its workers: small values pickled, arrays as they are, both in shared memory.

Each message is one anonymous memory file whose descriptor goes over a Unix socket. It has no name, so nothing is left
behind when either side is killed; it does not count against a container's /dev/shm; it is freed with its last array.
"""

import mmap
import os
import pickle
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER = struct.Struct("<QQ")  # bytes in the file, where its pickled part begins
_ALIGNMENT = 64


def channel() -> tuple[socket.socket, socket.socket]:
    """A connected pair of sockets that keep messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(end: socket.socket, value: object, arrays: Mapping[str, NDArray[Any]] | None = None) -> None:
    """Send a value and arrays.

    Raises:
        OSError: the other side is gone.
    """
    layout: dict[str, tuple[str, tuple[int, ...], int]] = {}
    memory = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        at = 0
        for name, array in (arrays or {}).items():
            at = -(-at // _ALIGNMENT) * _ALIGNMENT
            layout[name] = (array.dtype.str, array.shape, at)
            at = _write(memory, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, at)
        plain_at = at
        size = _write(memory, memoryview(pickle.dumps((value, layout))), plain_at)
        socket.send_fds(end, [_HEADER.pack(size, plain_at)], [memory])
    finally:
        os.close(memory)


def receive(end: socket.socket) -> tuple[Any, dict[str, Any]]:
    """Wait for a message. The arrays lie in its memory and may be written to.

    Raises:
        EOFError: the other side is gone.
    """
    try:
        header, descriptors, _, _ = socket.recv_fds(end, _HEADER.size, 1, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError as error:
        raise EOFError("the other side is gone") from error
    if not header:
        raise EOFError("the other side is gone")
    size, plain_at = _HEADER.unpack(header)
    memory = mmap.mmap(descriptors[0], size)
    os.close(descriptors[0])
    value, layout = pickle.loads(memory[plain_at:size])
    return value, {
        name: np.ndarray(shape, np.dtype(dtype), buffer=memory, offset=at)
        for name, (dtype, shape, at) in layout.items()
    }


def _write(memory: int, data: memoryview, at: int) -> int:
    """Write all of `data` at a place; returns where it ends."""
    while data:
        written = os.pwrite(memory, data, at)
        data, at = data[written:], at + written
    return at
