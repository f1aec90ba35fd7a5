"""The split step of a build: its plan taken over or made, and whether too much is lost to go on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from data.build_options import BuildSettings
from data.failures import counted, remedies
from data.ledger import Ledger, Summary
from data.manifest import Manifest, ManifestError
from data.mapping import Mapping
from data.mapping_file import check_columns
from data.plan import Plan, PlanMissing, load_plan, save_plan
from data.progress import progress
from data.rejecting import RejectedRows
from data.schema import UserError
from data.split import make_plan
from data.whole import whole_file, write_whole

# Rows that are well and have no place of their own: no reason to doubt a catalogue.
SET_ASIDE = frozenset({"duplicate", "filtered", "leak"})


def bring_plan(settings: BuildSettings, mapping: Mapping, ledger: Ledger) -> tuple[Plan, bool]:
    """Take over the plan of these settings, or make it if this run is to; says whether it was made.

    Raises UserError: no finished ledger or plan, another preset's columns, too much that failed or was rejected.
    """
    summary = ledger.summary()
    if summary is None:
        raise UserError(f"{ledger.downloads} holds no finished ledger; run --only fetch first")
    check_columns(mapping, tuple(summary.columns), summary.source)
    if list(mapping.pictures) != summary.pictures:
        raise UserError(
            f"the pictures of column(s) {', '.join(summary.pictures)} were fetched, the preset wants "
            f"{', '.join(mapping.pictures)}; run --only fetch with this preset"
        )
    folder, wanted = ledger.downloads / "plan", _plan_settings(settings, mapping, summary)
    rejected_path = settings.output / "rejected.jsonl"
    try:
        plan = load_plan(folder, wanted)
        made = rejected_path.is_file()
    except PlanMissing:
        if "split" not in settings.steps:
            raise
        made = False
    if not made and "split" in settings.steps:
        with (
            progress("split", "rows", summary.rows) as report,
            RejectedRows(folder / ".rejected.part") as rejected,
        ):
            plan = make_plan(
                ledger,
                summary.parts,
                mapping,
                settings.size,
                settings.near_duplicates,
                _breaks(settings, mapping, summary),
                rejected,
                report,
                settings.workers,
            )
            (settings.output / "manifest.json").unlink(missing_ok=True)
            with whole_file(rejected_path) as stream:
                stream.writelines(rejected.lines())
        save_plan(folder, plan, wanted)
    _check_rejected(plan, summary, settings)
    return plan, not made


def _breaks(settings: BuildSettings, mapping: Mapping, summary: Summary) -> list[int]:
    """Rows at which new shards start: where the catalogue ended at each whole build of this folder so far.

    So rows that are added to it touch no shard, not even one that is not full. Kept in a file, as the manifest that
    says so goes before the new one comes.
    """
    path = settings.output / "downloads" / "plan" / "breaks.json"
    record = build_record(settings, mapping, summary)
    try:
        old = Manifest.load(settings.output).build
    except ManifestError:
        breaks = json.loads(path.read_bytes()) if path.is_file() else []
    else:
        same = all(old.get(name) == record[name] for name in record if name not in ("rows", "breaks"))
        breaks = [*old["breaks"], old["rows"]] if same else []
    breaks = [row for row in breaks if row < summary.rows]
    write_whole(path, json.dumps(breaks).encode())
    return breaks


def _plan_settings(settings: BuildSettings, mapping: Mapping, summary: Summary) -> str:
    about = [mapping.model_dump(), asdict(settings.size), settings.near_duplicates, asdict(summary)]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _check_rejected(plan: Plan, summary: Summary, settings: BuildSettings) -> None:
    """Raise UserError if more downloads failed, or more of the other rows were rejected, than is allowed."""
    path = settings.output / "rejected.jsonl"
    failed = sum(summary.failed.values())
    if failed > settings.max_failed_downloads * summary.urls:
        raise UserError(
            f"{failed:,} of {summary.urls:,} URLs failed ({failed / summary.urls:.1%}, allowed "
            f"{settings.max_failed_downloads:.1%}): {counted(summary.failed)}; {remedies(summary.failed)}; "
            f"--max-failed-downloads allows more; {path} says why of each; what was done is kept"
        )
    others = plan.rows - summary.rows_failed
    rejected = sum(count for reason, count in plan.rejected.items() if reason not in SET_ASIDE) - summary.rows_failed
    reasons = counted(plan.rejected)
    if rejected > settings.max_rejected * others:
        encoding = "name the table's encoding with --encoding, " if "bad-text" in plan.rejected else ""
        raise UserError(
            f"{rejected:,} of {others:,} rows were rejected, failed downloads aside ({rejected / others:.1%}, allowed "
            f"{settings.max_rejected:.1%}): {reasons}; {path} says why of each; mend them, {encoding}or allow more "
            "with --max-rejected; what was done is kept"
        )
    if not plan.splits:
        raise UserError(f"none of the {plan.rows:,} rows is left ({reasons}); {path} says why of each")


def build_record(
    settings: BuildSettings, mapping: Mapping, summary: Summary, breaks: Sequence[int] = ()
) -> dict[str, Any]:
    """What gives the same bytes from the same rows; no path of this machine, no number of workers."""
    return {
        "mapping": mapping.model_dump(exclude_none=True),
        "source": summary.source,
        "rows": summary.rows,
        "breaks": list(breaks),
        "shard_samples": settings.size.samples,
        "shard_bytes": settings.size.bytes,
        "near_duplicates": settings.near_duplicates,
        "rewriting": asdict(settings.rewriting),
    }
