"""Records and comparisons as Markdown."""

from collections.abc import Sequence

from tests.benchmarks.bench.compare import Comparison
from tests.benchmarks.bench.runs import Outcome, Record
from tests.benchmarks.figures import Beside, Figure
from tests.benchmarks.pairs import table_lines

HEADS = ("figure", "measured", "rounds", "baseline", "× baseline", "limit", "of the limit", "asked", "")


def number(value: float) -> str:
    """Four digits, and thousands with their separators."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def record_lines(record: Record) -> list[str]:
    """Machine, versions and a table a benchmark."""
    machine, commit = record.machine, record.commit
    gpus = "; ".join(machine["gpus"]) or "none"
    lines = [
        f"# Benchmarks of {record.begun}, {record.size} size, {record.seconds / 60:.1f} minutes",
        "",
        f"- Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; GPUs: {gpus}; "
        f"kernel {machine['kernel']}",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in record.versions.items())}",
        f"- Commit: {commit['hash'] + (', with changes' if commit['changed'] else '') if commit else 'no git here'}",
    ]
    for outcome in record.benchmarks:
        lines += ["", f"## {outcome.name}", "", *outcome_lines(outcome)]
    return lines


def outcome_lines(outcome: Outcome) -> list[str]:
    """What became of one benchmark."""
    if outcome.state != "done":
        return [f"{outcome.state}: {outcome.reason}"]
    arguments = f"`{' '.join(outcome.arguments)}`; " if outcome.arguments else ""
    return [
        f"{arguments}{outcome.seconds:.0f} s; others had {outcome.others:.0%} of the processors right before or after, "
        f"load average {outcome.load_before:.1f} at the start, {outcome.steal:.1%} stolen"
        + (". **Taken on a busy machine: rates and times are too low or too long.**" if outcome.busy else ""),
        "",
        *table_lines(HEADS, [_row(figure) for figure in outcome.figures]),
    ]


def _row(figure: Figure) -> tuple[str, ...]:
    rounds = f"{number(figure.spread[0])} … {number(figure.spread[1])}" if figure.spread else ""
    verdict = {None: "", True: "holds", False: "**falls short**"}[figure.holds]
    return (
        *(figure.name, f"{number(figure.value)} {figure.unit}", rounds),
        *(_shown(figure.baseline), f"{figure.baseline.ratio:.2f}×" if figure.baseline else ""),
        *(_shown(figure.limit), f"{figure.limit.ratio:.1%}" if figure.limit else ""),
        *(figure.asked or "", verdict),
    )


def _shown(beside: Beside | None) -> str:
    return f"{number(beside.value)} {beside.name}" if beside else ""


def comparison_lines(comparison: Comparison, earlier: str) -> list[str]:
    """The table of what changed since `earlier`, a file's name or date."""
    lines = [f"## Against {earlier}", "", *(f"- {note}" for note in comparison.notes)]
    rows = [
        (
            *(change.benchmark, change.name, f"{number(change.old)} → {number(change.new)} {change.unit}"),
            *(f"{change.better_by:.2f}×", f"**{change.verdict}**" if change in comparison.worse else change.verdict),
        )
        for change in comparison.changes
    ]
    if not rows:
        return [*lines, "- No figure is in both."]
    return [
        *lines,
        *([""] if comparison.notes else []),
        *table_lines(("benchmark", "figure", "then → now", "as good as then", ""), rows),
        "",
        f"{len(comparison.worse)} of {len(rows)} got worse by more than the rounds differ among themselves.",
    ]


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many ended how, in a line."""
    counts = {state: sum(outcome.state == state for outcome in outcomes) for state in ("done", "skipped", "failed")}
    short = [figure for outcome in outcomes for figure in outcome.figures if figure.holds is False]
    asked = [figure for outcome in outcomes for figure in outcome.figures if figure.holds is not None]
    return (
        f"{counts['done']} done, {counts['skipped']} skipped, {counts['failed']} failed; "
        f"{len(asked) - len(short)} of {len(asked)} bounds hold"
    )
