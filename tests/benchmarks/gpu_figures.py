"""What `tests.benchmarks.gpu` found, as figures beside the published way and the measured rate of matrix products."""

from typing import Any

from tests.benchmarks.figures import Beside, Figure

OF_MEASURED, FROM_TOKENS = 0.5, 4096
ALL_LAYERS = "full"
"""The method that is asked to reach its share of the rate, in packs of so many tokens or more."""


def gpu_figures(found: dict[str, Any]) -> list[Figure]:
    """Of one method's cases, as plain values; those that did not fit into memory have none."""
    ways = {(case["way"], case["crops"]): case for case in found["cases"] if "seconds" in case}
    figures = []
    for case in found["cases"]:
        if case["way"] != "packs" or "seconds" not in case:
            continue
        whole = ", one sample" if case["samples"] == 1 < case["pictures"] else ""
        name = f"{found['method']}, packs of {case['tokens']:,} tokens, {case['crops']} crops{whole}"
        figures.append(_rate(name, case, ways.get(("published", case["crops"])), found))
        if "peak_gib" in case:
            computed = Beside(
                name="computed",
                value=case["computed_gib"],
                ratio=case["computed_gib"] / case["peak_gib"],
            )
            figures.append(
                Figure(
                    name=f"{name}: peak memory",
                    value=case["peak_gib"],
                    unit="GiB",
                    higher_is_better=False,
                    baseline=computed,
                )
            )
    return figures


def _rate(name: str, case: dict[str, Any], published: dict[str, Any] | None, found: dict[str, Any]) -> Figure:
    """Pictures a second; the limit is all operations at the rate of matrix products that this run measured."""
    rates = sorted(case["pictures"] / seconds for seconds in case["rounds"])
    value = case["pictures"] / case["seconds"]
    at_limit = case["pictures"] * found["matrix_rate"] / case["operations"]
    limit = Beside(
        name="measured matrix rate",
        value=at_limit,
        ratio=value / at_limit,
        spread=(rates[0] / at_limit, rates[-1] / at_limit),
    )
    baseline = None
    if published:
        theirs = published["pictures"] / published["seconds"]
        baseline = Beside(
            name="published way", value=theirs, ratio=value / theirs, spread=(rates[0] / theirs, rates[-1] / theirs)
        )
    figure = Figure(
        name=name, value=value, unit="pictures/s", spread=(rates[0], rates[-1]), baseline=baseline, limit=limit
    )
    if found["method"] == ALL_LAYERS and case["tokens"] >= FROM_TOKENS:
        return figure.asking(f"{OF_MEASURED:.0%} of the limit", limit.ratio >= OF_MEASURED)
    return figure
