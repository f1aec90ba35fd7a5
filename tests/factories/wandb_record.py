"""What an offline run of Weights & Biases holds, read from its file without their service."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, START = 32768, 7, 7
LIMIT_S = 120


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format, blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    place, whole = START, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        if place + HEADER + size > len(data):
            return  # still being written
        whole += data[place + HEADER : place + HEADER + size]
        place += HEADER + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def ended_record(run: Path) -> Path:
    """The .wandb file of a run's one offline record, once its end stands in it: their service writes it in its time."""
    end = time.monotonic() + LIMIT_S
    while True:
        (path,) = (run / "wandb").glob("offline-run-*/*.wandb")
        if any(record.WhichOneof("record_type") == "exit" for record in records(path)):
            return path
        assert time.monotonic() < end, f"{path} never ends"
        time.sleep(0.05)


def artifact_files(path: Path) -> dict[str, Path]:
    """The files of all artifacts of a run: their names in the artifact, and where they lie."""
    found = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "artifact":
            for entry in record.artifact.manifest.contents:
                found[entry.path] = Path(entry.local_path)
        elif record.WhichOneof("record_type") == "request" and record.request.HasField("log_artifact"):
            for entry in record.request.log_artifact.artifact.manifest.contents:
                found[entry.path] = Path(entry.local_path)
    return found


def summary(path: Path) -> dict[str, Any]:
    """The run's numbers, as they stand at its end."""
    numbers: dict[str, Any] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                numbers["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    return numbers
