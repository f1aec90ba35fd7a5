"""A folder of shards of any number of samples whose index is real and whose shards hold nothing: for plans alone."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.index import SCHEMA, write_table
from data.manifest import CHAT_TEMPLATES, Manifest
from data.shards import shard_name
from tests.factories.small_shards import write_tokenizer


def large_index(folder: Path, samples: int, *, per_shard: int = 10_000, seed: int = 0) -> Path:
    """Write `folder` with a split `train`: one picture a sample, sizes and texts of a long tail, tokens counted.

    Returns its tokenizer.json.
    """
    rng = np.random.default_rng(seed)
    tokenizer = write_tokenizer(folder / "tokenizer.json")
    numbers = np.arange(samples)
    text = np.exp(rng.normal(4.5, 0.8, samples)).astype(np.int32).clip(12, 2000)
    keys = pa.array(numbers).cast(pa.string()).cast(pa.large_string())
    members = pa.StructArray.from_arrays(
        [
            pa.array(["json", "jpg"]).take(pa.array(np.tile([0, 1], samples))),
            pa.array(np.repeat(numbers % per_shard * 30_720, 2) + np.tile([512, 1536], samples)),
            pa.array(np.tile([400, 28_000], samples)),
        ],
        fields=list(SCHEMA.field("members").type.value_type),
    )
    sizes = rng.choice(np.array([[400, 533], [533, 400], [640, 480], [1024, 1024], [300, 900]], np.int32), samples)
    columns = [
        keys,
        pa.array((numbers // per_shard).astype(np.int32)),
        pa.array(numbers % per_shard * 30_720),
        pa.array(np.full(samples, 30_720)),
        pa.LargeListArray.from_arrays(pa.array(np.arange(samples + 1) * 2), members),
        pa.array(numbers.astype(np.uint64)),
        pa.LargeListArray.from_arrays(
            pa.array(np.arange(samples + 1)), pa.FixedSizeListArray.from_arrays(pa.array(sizes.ravel()), 2)
        ),
        pa.array(text * 4),
        pa.array(text),
        pa.array(np.minimum(text // 2, 400).astype(np.int32)),
        keys,
    ]
    write_table(folder / "train" / "index.arrow", pa.table(columns, schema=SCHEMA))
    shards = []
    for number in range(-(-samples // per_shard)):
        (folder / "train" / shard_name(number)).touch()
        held = min(per_shard, samples - number * per_shard)
        shards.append({"name": shard_name(number), "bytes": 0, "sha256": f"{number:064x}", "samples": held})
    Manifest(
        counts={"train": {"samples": samples, "pictures": samples, "bytes": 0}},
        split_rule={},
        build={},
        chat_template={"name": "bare", "template": CHAT_TEMPLATES["bare"]},
        answer_template=None,
        question=None,
        fields={},
        shards={"train": shards},
        rejected={},
        leaks_prevented=0,
        tokenizer_hash=hashlib.sha256(tokenizer.read_bytes()).hexdigest(),
    ).save(folder)
    return tokenizer
