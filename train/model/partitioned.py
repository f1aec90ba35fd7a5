"""Published weights into partitioned parameters (ZeRO-3): each rank reads the bytes of its own slices and no others.

DeepSpeed is not imported here: transformers brings it in, and what it adds to a parameter says which slice is whose.
Checked against DeepSpeed 0.19.8 and transformers 5.23.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.model.weights import CheckpointError, Place, compare, tensor_places

PIECE_BYTES = 8 << 20


def keep_unfilled(contexts: Iterable[Any]) -> None:
    """Let parameters be partitioned as they are made, without rank 0 sending out values that files will replace.

    contexts: those that a model is built in; DeepSpeed's zero.Init among them is changed.
    """
    for context in contexts:
        if hasattr(context, "_convert_to_deepspeed_param"):
            context._zero_init_param = _partition_with(context)


def _partition_with(context: Any) -> Any:
    def partition(parameter: Any) -> None:
        context._convert_to_deepspeed_param(parameter)
        parameter.partition()

    return partition


def is_partitioned(model: nn.Module) -> bool:
    """Whether every parameter's slice lies in memory, to be filled; slices on disk (NVMe offload) are not."""
    return all(
        getattr(parameter, "ds_tensor", None) is not None and getattr(parameter, "nvme_swapper", None) is None
        for parameter in model.parameters()
    )


def load_slices(model: nn.Module, files: Iterable[Path]) -> None:
    """Fill this rank's slices of all parameters from safetensors files; nothing is sent between ranks.

    The values are those of the files, rounded to the parameters' dtype. Memory beyond the slices: PIECE_BYTES.
    Raises CheckpointError for files that are cut off, for tensors missing, unexpected or misshapen, and where a file
    cannot be read.
    """
    files = list(files)
    places = tensor_places(files)
    shapes = {name: tuple(parameter.ds_shape) for name, parameter in _partitioned(model)}
    compare(str(files[0].parent), {name: place.shape for name, place in places.items()}, shapes)
    with ExitStack() as opened, torch.no_grad():
        readers = {file: opened.enter_context(file.open("rb", buffering=0)) for file in files}
        piece = bytearray(PIECE_BYTES)
        for name, parameter in _partitioned(model):
            place = places[name]
            for held, group in (
                (parameter.ds_tensor, parameter.ds_process_group),
                # A second slice, of a node's ranks, where `zero_hpz_partition_size` asks for it.
                (parameter.ds_secondary_tensor, parameter.ds_zero_param_process_group),
            ):
                if held is not None:
                    start = torch.distributed.get_rank(group) * held.numel()
                    fill(held, place, start, readers[place.file].fileno(), piece)
            # transformers gives random values to what has no such mark.
            parameter._is_hf_initialized = True


def _partitioned(model: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from model.named_parameters()


def fill(target: Tensor, place: Place, start: int, file: int, piece: bytearray) -> None:
    """Put a stored tensor's elements from `start` on into a flat tensor, zeros behind the stored end.

    target: [n], of any floating dtype and on any device. file: a descriptor of place.file.
    piece: what the bytes pass through. They are read, not mapped: mapped pages would count as this process's memory.
    """
    length = max(0, min(target.numel(), place.numel - start))
    target[length:] = 0
    size = place.dtype.itemsize
    step = len(piece) // size
    for done in range(0, length, step):
        count = min(step, length - done)
        with memoryview(piece)[: count * size] as view:
            _read(file, view, place.offset + (start + done) * size, place)
        target[done : done + count] = torch.frombuffer(piece, dtype=place.dtype, count=count)


def _read(file: int, view: memoryview, offset: int, place: Place) -> None:
    done = 0
    while done < len(view):
        try:
            got = os.preadv(file, [view[done:]], offset + done)
        except OSError as error:
            raise CheckpointError(f"{place.file}: cannot be read at byte {offset + done} ({error})") from error
        if not got:
            raise CheckpointError(f"{place.file}: ends at byte {offset + done}; was it changed while it was read?")
        done += got
