"""Files of JSON lines that a run appends to, a step after the other."""

import json
from pathlib import Path
from typing import Any

from data.whole import write_whole


def cut_lines(path: Path, step: int) -> list[dict[str, Any]]:
    """Leave in a file of JSON lines the whole ones up to a step, as when that step was saved; returns them."""
    if not path.is_file():
        return []
    kept, records = [], []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
        except ValueError:
            break
        if record["step"] > step:
            break
        kept.append(line + b"\n")
        records.append(record)
    write_whole(path, b"".join(kept))
    return records
