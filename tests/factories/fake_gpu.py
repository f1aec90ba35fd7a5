"""A GPU that computes nothing: what lies on it has a size and no values, so the GPU's code runs where there is none.

`fake_device.load` comes first, in a process of its own. PyTorch's fake tensors stand for what is on the device, the
host's tensors are real. What reads a value back gets a zero and is counted, for there the host would wait. Memory is
counted as the allocator gives it out; what a kernel takes for itself while it runs is not seen.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from tests.factories.allocations import LiveBytes, tensors_in

NAME, MEMORY, CAPABILITY = "NVIDIA H200", 150_000_000_000, (9, 0)
PIECE = 512
"""Bytes of which the allocator gives out whole ones."""
DEVICE = torch.device("cuda", 0)
# Composite where no kernel is built for the device: it would be taken apart here, and is one kernel there.
KERNELS = ("silu_backward",)
# What DeepSpeed's ranks compare before they use it, there being no values to compare.
COMPARED = "deepspeed.runtime.zero.partitioned_param_coordinator.assert_ints_same_as_other_ranks"


class FakeGpu(TorchDispatchMode, LiveBytes):
    """Keeps what is on the device fake; counts its memory, and what waits for it."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        LiveBytes.__init__(self, PIECE)
        self.waits: list[str] = []
        """Operations that read a value back from the device."""
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Memory of the host's is as good as pinned.
        kwargs = {name: value for name, value in (kwargs or {}).items() if name != "pin_memory"}
        given = [tensor for tensor in tensors_in(args, kwargs) if isinstance(tensor, FakeTensor)]
        wanted = kwargs.get("device")
        there = wanted is not None and torch.device(wanted).type == "cuda"
        if not given and not there:
            return func(*args, **kwargs)
        result = self._run(func, args, kwargs, there)
        made = [tensor for tensor in tensors_in(result) if isinstance(tensor, FakeTensor)]
        self.count((tensor for tensor in made if tensor.device.type == "cuda"), given)
        return result

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], there: bool) -> Any:
        name, first = func._schema.name, args[0] if args else None
        if name == "aten::_local_scalar_dense":
            self.waits.append(name)
            return torch.zeros((), dtype=args[0].dtype).item()
        if name == "aten::_to_copy" and not isinstance(first, FakeTensor):
            with self._fake:
                dtype = kwargs.get("dtype") or args[0].dtype
                return torch.empty_strided(args[0].shape, args[0].stride(), dtype=dtype, device=DEVICE)
        if name == "aten::_to_copy" and not there and kwargs.get("device") is not None:
            self.waits.append("copy to the host")
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name == "aten::copy_" and not isinstance(first, FakeTensor):
            self.waits.append("copy to the host")
            return first
        with self._fake:
            return func(*args, **kwargs)


class Idle:
    """A stream or an event of a device on which nothing runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device, self.cuda_stream = DEVICE, 0

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


def nothing() -> Callable[..., None]:
    """A function that does nothing; each time another one, for torch keeps lists of its own by identity."""
    return lambda *args, **kwargs: None


def of_cuda(gpu: FakeGpu, count: int) -> dict[str, Any]:
    """What torch.cuda says of the device, and of others like it."""
    properties = SimpleNamespace(name=NAME, total_memory=MEMORY, major=CAPABILITY[0], minor=CAPABILITY[1])
    silent = ("_lazy_init", "set_device", "synchronize", "empty_cache", "manual_seed_all")
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: CAPABILITY,
        "get_device_properties": lambda device=None: properties,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "mem_get_info": lambda device=None: (MEMORY - gpu.live_bytes, MEMORY),
        "memory_allocated": lambda device=None: gpu.live_bytes,
        "memory_reserved": lambda device=None: gpu.live_bytes,
        "max_memory_allocated": lambda device=None: gpu.peak_bytes,
        "max_memory_reserved": lambda device=None: gpu.peak_bytes,
        "memory_stats": lambda device=None: {},
        "reset_peak_memory_stats": lambda device=None: gpu.forget_peak(),
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device=None: Idle(),
        "default_stream": lambda device=None: Idle(),
        "Stream": Idle,
        "Event": type("Event", (Idle,), {}),
        **{name: nothing() for name in silent},
    }


def apply_in_place(module: torch.nn.Module, function: Callable[..., Any], recurse: bool = True) -> torch.nn.Module:
    """`Module._apply` for parameters of a subclass, which torch would exchange under the hands of autograd."""
    for child in module.children():
        child._apply(function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                changed = function(parameter)
            if changed is not parameter:
                module._parameters[name] = torch.nn.Parameter(changed, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def flash_attention(plain: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's attention with the kernel that a GPU takes for half precision without a mask."""

    def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, **options: Any) -> Any:
        if query.device.type != "cuda" or attn_mask is not None:
            return plain(query, key, value, attn_mask, **options)
        dropout, causal, scale = (options.get(name) for name in ("dropout_p", "is_causal", "scale"))
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout or 0.0, bool(causal), False, scale=scale)[0]

    return attention


@contextlib.contextmanager
def fake_gpu(ranks: int = 1) -> Iterator[FakeGpu]:
    """A GPU that computes nothing, and process groups in which nothing is sent.

    ranks: this process is the first of so many, each with a GPU; the others need not be there.
    """
    gpu, begin = FakeGpu(), torch.distributed.init_process_group
    torch._C._set_only_lift_cpu_tensors(True)
    library = torch.library.Library("aten", "IMPL")
    for name in KERNELS:
        library.impl(name, lambda *args: None, "CUDA")

    def begun(*args: Any, **kwargs: Any) -> None:
        begin("fake", rank=0, world_size=ranks, store=FakeStore())

    def everyone(*args: Any, **kwargs: Any) -> Any:
        return torch.distributed.group.WORLD

    with contextlib.ExitStack() as stack:
        for name, value in of_cuda(gpu, ranks).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name in ("range_push", "range_pop"):
            stack.enter_context(mock.patch.object(torch.cuda.nvtx, name, nothing()))
        stack.enter_context(mock.patch.object(torch.distributed, "init_process_group", begun))
        stack.enter_context(mock.patch.object(torch.distributed, "new_group", everyone))
        stack.enter_context(mock.patch.object(torch.nn.Module, "_apply", apply_in_place))
        plain = torch.nn.functional.scaled_dot_product_attention
        stack.enter_context(
            mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", flash_attention(plain))
        )
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", lambda tensor, *args: tensor))
        stack.enter_context(mock.patch.object(torch.Tensor, "record_stream", nothing()))
        stack.enter_context(mock.patch(COMPARED))
        stack.enter_context(gpu)
        yield gpu
    library._destroy()
