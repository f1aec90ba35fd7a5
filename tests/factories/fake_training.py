"""Two steps of the trainer's engine on a GPU that computes nothing: `python -m … LIBRARY CASE.json`.

A case holds `settings` of a run, whether the model is of the published sizes (`full`), `tokens` and `crops` of a pack,
and how many `ranks` there are, of which this is the first.
Prints, as JSON, what a pack and a step wait for, and bytes of the device: after the engine's start, the most of two
steps, and what the dry run computes for them.
"""

import json
import os
import sys
from pathlib import Path

from tests.factories.fake_device import load

load(Path(sys.argv[1]))

from tests.benchmarks.full_size import (
    alone,
    computed_peak,
    config_of,
    full_config,
    make_engine,
    pack_of,
    samples,
    small_config,
)
from tests.factories.fake_gpu import fake_gpu
from train.loss import backward_scale, count_labels

case = json.loads(Path(sys.argv[2]).read_text())
ranks = case["ranks"]
place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
os.environ.update(place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"} if ranks > 1 else {})
with fake_gpu(ranks) as gpu:
    architecture = full_config() if case["full"] else small_config()
    config = config_of(**case["settings"])
    engine = make_engine(architecture, config, alone())
    batch = pack_of(config, samples(architecture, case["crops"], case["tokens"]))
    found = {"attention": engine.attention, "device": str(engine.world.device), "start": gpu.live_bytes}
    gpu.forget_peak()
    for step in range(2):
        gpu.waits.clear()
        engine.train_pack(batch, step, backward_scale(1, count_labels(batch.labels)))
        found["pack_waits"] = list(gpu.waits)
        gpu.waits.clear()
        engine.step(1e-5)
        found["step_waits"] = list(gpu.waits)
    found["peak"] = gpu.peak_bytes
    found["computed"] = computed_peak(config, batch, architecture, engine.world.device, ranks)
print(json.dumps(found), flush=True)
