"""The tables of `tests.benchmarks.gpu`."""

from collections.abc import Sequence
from typing import Any

from tests.benchmarks.pairs import print_table

PUBLISHED = (("full", 8.657), ("frozen", 31.7), ("lora", 12.1))
"""Pictures a second on 8 A100, by what is trained."""
PUBLISHED_GPUS, PUBLISHED_PEAK, PUBLISHED_TOKENS = 8, 312e12, 2443


def tell(found: dict[str, Any]) -> None:
    """The tables of one method."""
    measured, sheet = found["matrix_rate"], found["data_sheet"]
    told = f", data sheet {sheet / 1e12:,.0f}" if sheet else ""
    print(f"\n## {found['method']} on {found['device']}, {found['deepspeed']}")
    print(f"bf16 matrix products: {measured / 1e12:,.1f} TFLOP/s measured{told}")
    ways = {way: spent if isinstance(spent, str) else f"{spent:.3f} s" for way, spent in found["tried"].items()}
    print(
        f"kernels: {found['kernels']}; a step by each: "
        + "; ".join(f"{way} {said}" for way, said in ways.items())
        + "\n"
    )
    rows = []
    for case in found["cases"]:
        start = (case["way"], f"{case['tokens']:,}", str(case["crops"]), str(case["samples"]))
        peak = f"{case['peak_gib']:.1f}" if "peak_gib" in case else "–"
        computed = f"{case['computed_gib']:.1f}" if "computed_gib" in case else ""
        again = "yes" if case["recomputed"] else "no"
        if "failed" in case:
            rows.append((*start, case["failed"], "", "", "", "", peak, computed, again, ""))
            continue
        rate = case["operations"] / case["seconds"]
        rows.append(
            (
                *start,
                f"{case['seconds']:.3f}",
                f"{case['tokens'] / case['seconds']:,.0f}",
                f"{case['pictures'] / case['seconds']:.2f}",
                f"{rate / measured:.1%}",
                f"{rate / sheet:.1%}" if sheet else "–",
                peak,
                computed,
                again,
                f"{case['explained']:.1%}" if case.get("explained") else "",
            )
        )
    header = ("way", "tokens", "crops", "samples", "s a step", "tokens/s", "pictures/s", "of measured", "of sheet")
    print_table((*header, "peak GiB", "computed", "recomputed", "device at work"), rows)
    for case in found["cases"]:
        if case.get("kernels"):
            print(f"\nLargest kernels at {case['tokens']:,} tokens, {case['crops']} crops:")
            for name, seconds, calls in case["kernels"]:
                print(f"  {1e3 * seconds:9.2f} ms  {calls:6,} ×  {name[:90]}")
            print("  " + ", ".join(f"{kind} {1e3 * spent:.1f} ms" for kind, spent in case["kinds"].items()))


def tell_published(found: Sequence[dict[str, Any]]) -> None:
    """The published 8 × A100 figures beside ours at 16 crops."""
    rows = []
    for name, rate in PUBLISHED:
        ours = [
            case
            for one in found
            if one["method"] == name
            for case in one["cases"]
            if case["crops"] == 16 and case["way"] == "packs" and "seconds" in case
        ]
        best = max(ours, key=lambda case: case["pictures"] / case["seconds"], default=None)
        per_gpu, sheet = rate / PUBLISHED_GPUS, next((one["data_sheet"] for one in found if one["data_sheet"]), None)
        if best is None:
            rows.append((name, f"{per_gpu:.2f}", f"{per_gpu / PUBLISHED_PEAK * 1e15:.2f}", "–", "–"))
            continue
        own = best["pictures"] / best["seconds"]
        rows.append(
            (
                name,
                f"{per_gpu:.2f}",
                f"{per_gpu / PUBLISHED_PEAK * 1e15:.2f}",
                f"{own:.2f}",
                f"{own / sheet * 1e15:.2f}" if sheet else "–",
            )
        )
    print(f"\nPublished, on 8 A100 with {PUBLISHED_TOKENS:,} tokens a picture, and ours at 16 crops (2,509 tokens):\n")
    print_table(("", "pictures/s a GPU", "a PFLOP/s of its sheet", "ours a GPU", "a PFLOP/s of its sheet"), rows)
