"""The steps after the fetch: rows dealt to splits, shards and manifest written, all of it sent where it is to go."""

from data.build_options import BuildSettings
from data.build_plan import bring_plan, build_record
from data.ledger import Ledger
from data.light import trim
from data.manifest import CHAT_TEMPLATES, Manifest, ManifestError
from data.mapping import Mapping
from data.outcome import Outcome
from data.progress import progress
from data.publish import publish, upload_bytes
from data.tokens import Tokens
from data.write import write_shards


def finish(settings: BuildSettings, mapping: Mapping, ledger: Ledger, outcome: Outcome) -> None:
    """Run what is asked for of the steps split and write, over a complete ledger. Raises UserError."""
    outcome.plan, made = bring_plan(settings, mapping, ledger)
    outcome.changed |= made
    trim()  # what the split took, before workers come again
    if "write" not in settings.steps:
        return
    _write(settings, mapping, ledger, outcome)
    if settings.upload and settings.part.whole:
        with progress("upload", "bytes", upload_bytes(settings.output)) as report:
            outcome.uploaded = publish(settings.output, settings.upload, report)
        outcome.changed |= outcome.uploaded > 0


def _write(settings: BuildSettings, mapping: Mapping, ledger: Ledger, outcome: Outcome) -> None:
    plan, summary = outcome.plan, ledger.summary()
    assert plan is not None
    assert summary is not None
    template = CHAT_TEMPLATES[mapping.chat_template]
    tokens = Tokens.of(settings.tokenizer, template) if settings.tokenizer else None
    with progress("write", "samples", sum(len(one.rows) for one in plan.splits.values())) as report:
        written = write_shards(settings.output, plan, mapping, settings.workers, report, tokens, settings.part)
    outcome.shards_written = written.new_shards
    outcome.changed |= written.changed
    if not settings.part.whole:
        return
    shards = written.shards
    manifest = Manifest(
        counts={
            split: {
                "samples": sum(shard["samples"] for shard in shards[split]),
                "pictures": written.pictures[split],
                "bytes": sum(shard["bytes"] for shard in shards[split]),
            }
            for split in plan.splits
        },
        split_rule=mapping.split.model_dump(exclude_none=True),
        build=build_record(settings, mapping, summary, plan.breaks),
        chat_template={"name": mapping.chat_template, "template": template},
        answer_template=mapping.answer_template,
        question=mapping.question,
        fields={name: rule.type for name, rule in mapping.fields.items()},
        shards=shards,
        rejected=plan.rejected,
        leaks_prevented=plan.leaks_prevented,
        tokenizer_hash=tokens.sha256 if tokens else None,
    )
    try:
        whole = Manifest.load(settings.output) == manifest
    except ManifestError:
        whole = False
    if not whole:
        manifest.save(settings.output)
    outcome.changed |= not whole
    outcome.manifest = manifest
