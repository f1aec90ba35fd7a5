"""How far our model and processor are from the published ones: `python -m tests.parity` prints the table.

Everything in phi3v/golden of the reference material is compared; the page on the model holds the table.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.pairs import print_table
from tests.conftest import MATERIAL
from tests.factories import goldens as golden
from tests.factories.goldens import BOUNDS, CASES, Goldens

HEADER = ("compared", "with", "largest difference", "allowed")
ATTENTIONS = ("eager", "sdpa")


def counted(label: str, what: str, found: Iterator[tuple[str, bool]]) -> tuple[str, str, float]:
    """A line that counts what is wrong; names it on stderr."""
    results = list(found)
    wrong = [name for name, is_wrong in results if is_wrong]
    for name in wrong:
        print(f"{label}: {name}", file=sys.stderr)
    return label, f"{len(results):,} {what}", float(len(wrong))


def worst(found: Iterable[Mapping[str, float]], what: str) -> list[tuple[str, str, float]]:
    """A line for each kind of difference, with the worst of them."""
    results = list(found)
    return [(label, f"{len(results):,} {what}", golden.worst(one[label] for one in results)) for label in results[0]]


def passes(goldens: Goldens, attention: str) -> list[tuple[str, str, float]]:
    """The lines of all forward and backward passes with one attention."""
    model = goldens.model(attention)
    return worst((golden.case_differences(goldens, model, name) for name in CASES), f"passes, {attention}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 1 if a difference is larger than allowed."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("--material", type=Path, default=MATERIAL, help="folder that holds phi3v/ and clothing/")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        goldens = Goldens(options.material, Path(folder) / "tiny")
        steps: list[Callable[[], list[tuple[str, str, float]]]] = [
            lambda: [counted("wrong ids", "prompts", golden.wrong_ids(goldens))],
            lambda: [counted("wrong sizes", "sizes", golden.wrong_sizes(goldens))],
            lambda: worst((found for _, found in golden.pixel_differences(goldens)), "pictures"),
            lambda: worst(({"rotary tables": off} for _, off in golden.rotary_differences(goldens)), "tables"),
            *(lambda attention=attention: passes(goldens, attention) for attention in ATTENTIONS),
            lambda: [counted("changed tensors", "tensors, loaded and saved", golden.changed_tensors(goldens))],
        ]
        lines = [line for step in steps for line in step()]
    print_table(HEADER, [(label, what, f"{found:.2g}", f"{BOUNDS[label]:g}") for label, what, found in lines])
    beyond = [f"{label} ({what})" for label, what, found in lines if not found <= BOUNDS[label]]
    for line in beyond:
        print(f"too far from the published model: {line}", file=sys.stderr)
    return 1 if beyond else 0


if __name__ == "__main__":
    raise SystemExit(main())
