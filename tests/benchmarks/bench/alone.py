"""One benchmark in a process of its own: `python -m tests.benchmarks.bench.alone MODULE FILE [its arguments]`.

What it finds goes to FILE as JSON: `figures`, or `lacking`, why it cannot run on this machine.
"""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.whole import write_whole
from tests.benchmarks.figures import Unavailable


def main(arguments: Sequence[str]) -> None:
    """The command line."""
    module_name, into, *own = arguments
    module = importlib.import_module(module_name)
    options = module.parser().parse_args(own)
    found: dict[str, Any]
    try:
        found = {"figures": [figure.to_json() for figure in module.measure(options)]}
    except Unavailable as lacking:
        found = {"lacking": str(lacking)}
    write_whole(Path(into), json.dumps(found).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
