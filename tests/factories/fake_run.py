"""A program on a GPU that computes nothing: `python -m tests.factories.fake_run LIBRARY PROGRAM ARGUMENTS …`.

PROGRAM: a file or a module.
"""

import runpy
import sys
from pathlib import Path
from unittest import mock

from tests.factories.fake_device import load

library, program = sys.argv[1:3]
load(Path(library))
del sys.argv[1:3]

import torch

from tests.factories.fake_gpu import DEVICE, fake_gpu
from train import engine
from train.config_schema import OptimSection

plain = engine.build_optimizer


def on_device(model: torch.nn.Module, settings: OptimSection) -> torch.optim.Optimizer:
    """The optimizer of parameters that lie there already: moved later, they would be others than it knows."""
    model.to(DEVICE)
    return plain(model, settings)


with fake_gpu(), mock.patch.object(engine, "build_optimizer", on_device):
    if program.endswith(".py"):
        sys.argv[0] = program
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
