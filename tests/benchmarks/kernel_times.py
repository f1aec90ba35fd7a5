"""Where a step's time goes on the device: its kernels, by kind and the largest ones, and how long it had none."""

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS = (
    ("attention", r"flash|fmha|attention"),
    ("matrix products", r"gemm|nvjet|cutlass|cublas|addmm|aten::mm|aten::bmm|sm\d+_xmma|_mm\b|splitK"),
    ("optimizer and norms of the gradient", r"multi_tensor|adam|lpnorm|l2norm"),
    ("copies", r"memcpy|memset|copy|CatArray"),
    ("communication", r"nccl"),
)
OTHER = "the rest: norms, gates, rotation, sums, indices"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTimes:
    """One step, looked at kernel by kernel."""

    wall_s: float
    """From the first call to the device being done."""
    busy_s: float
    """Of that, with at least one kernel or copy on the device."""
    by_kind: dict[str, float]
    """Seconds; kernels side by side count each."""
    largest: tuple[tuple[str, float, int], ...]
    """name, seconds, calls"""

    @property
    def explained(self) -> float:
        """Share of the step in which the device had something to do."""
        return self.busy_s / self.wall_s


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """How much of a line is under at least one interval."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def kind_of(kernel: str) -> str:
    """What a kernel is for, by its name."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, kernel, re.IGNORECASE)), OTHER)


def kernel_times(step: Callable[[], object], device: torch.device, most: int = 10) -> KernelTimes:
    """Run a step under torch's profiler. On a CPU its operators stand for kernels."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as traced:
        begun = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize(device)
        wall = time.perf_counter() - begun
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    intervals = []
    for event in traced.events():
        if event.device_type != wanted or (on_gpu and event.is_user_annotation):
            continue
        spent = (event.device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        seconds[event.name] += spent
        calls[event.name] += 1
        intervals.append((event.time_range.start / 1e6, event.time_range.end / 1e6))
    by_kind: dict[str, float] = defaultdict(float)
    for name, spent in seconds.items():
        by_kind[kind_of(name)] += spent
    first = sorted(seconds, key=lambda name: -seconds[name])[:most]
    return KernelTimes(
        wall_s=wall,
        busy_s=covered(intervals),
        by_kind=dict(sorted(by_kind.items(), key=lambda item: -item[1])),
        largest=tuple((name, seconds[name], calls[name]) for name in first),
    )
