"""`train/main.py` on a GPU that computes nothing: `python -m tests.factories.fake_run LIBRARY ARGUMENTS …`."""

import runpy
import sys
from pathlib import Path
from unittest import mock

from tests.factories.fake_device import load

load(Path(sys.argv.pop(1)))

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
    runpy.run_path("train/main.py", run_name="__main__")
