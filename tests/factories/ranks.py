"""A test's module as several ranks on this machine, joined over gloo."""

import atexit
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from train.config_schema import Config
from train.deepspeed_config import compose, read
from train.distributed import World, bring_together, find_place, free_port, part

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 1200


def run_ranks(file: str, *arguments: object, ranks: int = 2, **environment: str) -> list[str]:
    """Run a file of tests as a program, once for each rank; their outputs. Each must end with exit code 0.

    environment: more variables for the ranks.
    """
    common = (
        os.environ
        | environment
        | {
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
        }
    )
    module = ".".join(Path(file).relative_to(ROOT).with_suffix("").parts)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=LIMIT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(text[-3000:] for text in outputs)
    return outputs


def join() -> World:
    """On each rank: the ranks brought together; they part when the interpreter ends."""
    world = bring_together(find_place(os.environ), os.environ)
    atexit.register(part)
    return world


def zero3_settings(precision: str = "fp32", **changes: Any) -> tuple[Config, dict[str, Any]]:
    """A run's configuration and DeepSpeed's, that of ds_configs/zero3.json but for some changes to its ZeRO section."""
    config = Config.model_validate({"model": {"precision": precision, "attention": "sdpa"}})
    values = read(config)
    return config, compose(config, {"zero_optimization": values["zero_optimization"] | changes}, 2)
