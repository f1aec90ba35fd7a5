"""A device "cuda" for a PyTorch without one (fake_device.cpp): compiled, and loaded before torch is imported."""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")


def compiler() -> str | None:
    """The C++ compiler here, or None."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)


def build(library: Path) -> Path:
    """Compile the library; takes seconds. Raises CalledProcessError where this torch's headers have another form."""
    found, torch = compiler(), importlib.util.find_spec("torch")
    assert found is not None
    assert torch is not None
    assert torch.submodule_search_locations is not None
    (root,) = map(Path, torch.submodule_search_locations)
    includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    links = [f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{root / 'lib'}"]
    command = [found, "-std=c++20", "-shared", "-fPIC", *includes, str(SOURCE), "-o", str(library), *links]
    subprocess.run(command, check=True)
    return library


def load(library: Path) -> None:
    """Have this process's PyTorch find a device "cuda"; what it can do there, see fake_gpu."""
    if "torch" in sys.modules:
        raise RuntimeError("torch is imported, and has seen that there is no GPU; load this before it")
    os.environ["DS_ACCELERATOR"] = "cuda"
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
