"""One training job from the ranks brought together to the last line: run folder, plan, model, loop."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.whole import write_whole
from train.asking import open_asking
from train.checkpoint import CheckpointError, Manifest, fingerprint_model
from train.checkpointing import Checkpoints
from train.config import ConfigError
from train.config_schema import Config
from train.console import Console
from train.data_record import DataRecord
from train.deepspeed_checks import check_sections
from train.deepspeed_config import compose
from train.determinism import be_deterministic
from train.distributed import World
from train.engine import Engine, load_model, part_sizes
from train.faults import Skips
from train.heartbeat import Heart
from train.keeping import best_known, clear_unfinished, found, newest
from train.loop import Training
from train.material import Geometry, cache_folder, find_model, read_geometry, shard_cache, shard_folders
from train.mixture import Mixture
from train.model.lora import adapted_layers
from train.pipeline.loader import Loader
from train.pipeline.makers import SILENCE_BEYOND_PATIENCE_S
from train.pipeline.opening import differing, record_of
from train.pipeline.plan import Plan
from train.pipeline.spec import PlanSpec
from train.pipeline.storage import Storage
from train.planning import describe_over_long, open_split, open_training, pinned_plan
from train.precision import check_precision
from train.preemption import Preemption
from train.reporting import Report
from train.runs import Earlier, RunError, RunFolder, step_of
from train.saving import Saver
from train.stopping import End, Stopping, earlier_rules, last_step
from train.tracing import Trace
from train.tracking import Tracker
from train.tuning import check_calls, check_kernels, check_tuning
from train.validation import MEASURING, Validation
from train.waiting import Waiting

LOADER_FIRST_S = 60.0


def open_validation(config: Config, model: Path, geometry: Geometry, world: World) -> Validation | None:
    """What the validation loss is measured on, or None where the shards have no such split."""
    found = world.agree(lambda: shard_folders(config, config.data.validation))
    if not found:
        return None
    # Each sample once: the loss is of the samples there are, whatever the training's weights.
    folders = [replace(one, weight=None) for one in found]
    return Validation(
        plan=open_split(config, folders, config.data.validation, model, geometry, world, shuffle=False),
        tokenizer=model / "tokenizer.json",
        packs=config.evaluate.packs,
        workers=config.data.workers,
        storage=storage_of(config, world),
    )


def storage_of(config: Config, world: World) -> Storage:
    """How shards are read."""
    return Storage(
        patience_s=60 * config.data.patience_minutes,
        cache=str(shard_cache(config)),
        cache_bytes=int(config.data.cache_gb * 1e9),
        node_share=world.place.local_world_size / world.size,
    )


def patient_limits(config: Config) -> dict[str, float]:
    """Seconds of the phases that wait for data: the loader's own limit comes first, for it can say why."""
    loader_s = 60 * config.data.patience_minutes + SILENCE_BEYOND_PATIENCE_S + LOADER_FIRST_S
    return dict.fromkeys(("data", MEASURING), max(loader_s, 60 * config.run.stall_minutes))


def open_run(
    run: RunFolder, config: Config, settings: Mapping[str, Any], console: Console
) -> tuple[Earlier, Path | None]:
    """Hold the run folder and look at what is in it; on rank 0.

    Returns what changed since the earlier start, and the checkpoint to go on from.
    """
    run.hold()
    earlier = run.compare(config, settings)
    clear_unfinished(run.path)
    start = newest(run.path, console.say)
    if start is None and found(run.path):
        raise RunError(
            f"{run.path}: none of its {len(found(run.path))} checkpoints is whole; bring the files back, "
            "or start another run by --run NAME"
        )
    return earlier, start


def describe(engine: Engine, plan: Plan, config: Config, world: World, end: End) -> str:
    """What is about to be trained, on what, how long."""
    sizes = part_sizes(engine.deepspeed.module)
    parts = ", ".join(f"{part} {size.trained:,} of {size.total:,}" for part, size in sizes.items())
    trained = sum(size.trained for size in sizes.values())
    figures = plan.figures()
    where = f"{world.size} rank{'s' if world.size > 1 else ''} on {world.device.type}"
    adapted = adapted_layers(engine.deepspeed.module)
    adapters = f"adapters: {', '.join(f'{part} {layers} layers' for part, layers in adapted.items())}\n"
    early = f"; may end before by {rules}" if (rules := earlier_rules(config.stop)) else ""
    rates = "".join(f"; {part} {rate:g}" for part, rate in config.optim.lr_by_part.items())
    return (
        f"training {trained:,} parameters ({config.tune.method}): {parts}\n"
        f"{adapters if adapted else ''}"
        f"learning rate {config.optim.lr:g}{rates}\n"
        f"{where}, {config.model.precision}, attention {engine.attention}, ZeRO-{engine.zero_stage}\n"
        f"an epoch: {figures.samples:,} samples ({figures.over_long:,} too long, {figures.cut_down:,} in "
        f"fewer crops) in {figures.packs:,} packs of "
        f"{config.data.pack_length:,} tokens, {figures.fill:.1%} full, {figures.steps:,} steps\n"
        f"the run: {end.steps:,} steps ({end.rule}){early}"
    )


def check_plan(folder: Path, saved: str, plan: Plan, pinned: PlanSpec | None) -> None:
    """Raise CheckpointError where the data are not what the checkpoint was trained on."""
    if saved != plan.spec.fingerprint():
        others = ", ".join(differing(pinned, plan.spec)) if pinned else "the shards or the tokenizer"
        raise CheckpointError(
            f"{folder}: the order of training was another (plan {saved[:12]}, now {plan.spec.fingerprint()[:12]}): "
            f"{others} changed since; bring back what was there, or start another run by --run NAME"
        )


def begin(
    run: RunFolder,
    config: Config,
    settings: Mapping[str, Any],
    plan: Plan,
    tokenizer: Path,
    total: int,
    start: Path | None,
) -> None:
    """Write what this start is made of into the run's folder; on rank 0."""
    run.begin(config, settings, record_of(plan, tokenizer, cache_folder(config)), total, start)
    write_whole(run.path / "over_long.jsonl", describe_over_long(plan))


def resume(
    engine: Engine,
    plan: Plan,
    pinned: PlanSpec | None,
    start: Path,
    base: Mapping[str, str],
    earlier: Earlier,
    console: Console,
) -> int:
    """Load a checkpoint and say from where the run goes on; returns its step."""
    manifest = engine.load(start)
    check_plan(start, manifest.plan, plan, pinned)
    if manifest.base["fingerprint"] != base["fingerprint"]:
        raise CheckpointError(
            f"{start}: training started from another model than {base['path']} is now; bring {manifest.base['path']} "
            "back, or start another run by --run NAME"
        )
    console.say(f"going on from {start} (step {manifest.step})")
    if manifest.world_size != engine.world.size:
        console.say(f"  ranks: {manifest.world_size} -> {engine.world.size}")
    for key, (was, now) in earlier.changed.items():
        console.say(f"  {key}: {was!r} -> {now!r}")
    return manifest.step


def owes_validation(run: RunFolder, config: Config, done: int, last: bool) -> bool:
    """Whether the validation loss after step `done` was due, as after the last one, and is not in the metrics."""
    every = config.evaluate.every_steps
    due = done > 0 and (last or (every > 0 and done % every == 0))
    return due and not run.has_line(done, "validation")


def check_settings(config: Config, settings: dict[str, Any], world: World) -> None:
    """Raise UserError, on every rank, for settings that cannot be trained with here; before anything is loaded."""
    world.agree(lambda: check_sections(settings, config.deepspeed))
    world.agree(lambda: check_precision(config.model.precision))
    world.agree(lambda: check_kernels(config, world.device))
    world.agree(lambda: check_tuning(config, settings["zero_optimization"]))


def find_fetched(config: Config, world: World) -> Path:
    """The folder of the model, which was fetched if it had to be. Raises ConfigError."""
    folder = world.agree(lambda: find_model(config.model.path))
    if folder is None:
        raise ConfigError(
            f"model.path: {config.model.path} was fetched and is not in the local cache; is the disk full?"
        )
    return folder


def check_measured(config: Config, validation: Validation | None) -> None:
    """Raise ConfigError for what needs a validation split, where the shards have none."""
    if config.stop.patience is not None and validation is None:
        raise ConfigError(
            f"stop.patience: the shards have no split '{config.data.validation}' to measure a loss on; set "
            "data.validation, or take stop.patience out"
        )
    if config.evaluate.answers and validation is None:
        raise ConfigError(
            f"evaluate.answers: the shards have no split '{config.data.validation}' to ask about; set data.validation, "
            "or evaluate.answers to 0"
        )


def open_heart(config: Config, run: RunFolder, world: World, ended: Callable[[str], object]) -> Heart:
    """What notices a rank that stands still."""
    return Heart(
        world,
        run.path / "stacks",
        60 * config.run.stall_minutes,
        patient_limits(config),
        failed=run.set_failed,
        ended=ended,
    )


def open_checkpoints(
    config: Config,
    run: RunFolder,
    engine: Engine,
    heart: Heart,
    report: Report,
    plan: Plan,
    base: dict[str, str],
    start: Path | None,
) -> Checkpoints:
    """The run's checkpoints; `start`: the one that it goes on from."""
    world = engine.world
    return Checkpoints(
        settings=config.checkpoint,
        world=world,
        engine=engine,
        saver=Saver(run.checkpoints, world, background=config.checkpoint.background, heart=heart),
        report=report,
        plan=plan.spec.fingerprint(),
        base=base,
        newest=start,
        best=world.from_first(lambda: best_known(run.path)),
    )


def work(
    config: Config,
    settings: dict[str, Any],
    run: RunFolder,
    world: World,
    preemption: Preemption,
    ended: Callable[[str], object],
    profile: str | None = None,
) -> None:
    """Do the job on every rank; returns when it is finished, preempted, or was finished before.

    preemption: whether a signal has asked the job to leave; answered from the first step on.
    ended: told why, where the process is about to end because a rank holds all others up.
    profile: steps to trace, see tracing.Trace.
    Raises UserError for what a person can mend; the same on every rank, except for a rank that cannot read its data.
    """
    console = Console(world.first)
    trace = Trace(profile, run.path / "profile", world)
    check_settings(config, settings, world)
    if config.run.deterministic:
        be_deterministic()
    earlier, start = world.from_first(lambda: open_run(run, config, settings, console))
    run.ours = True
    folder = find_fetched(config, world)
    geometry = world.agree(lambda: read_geometry(folder, config.model.num_crops))
    pinned = world.from_first(lambda: pinned_plan(run.path, start))
    plan = open_training(config, folder, geometry, world, pinned)
    world.agree(lambda: check_calls(config, settings["zero_optimization"], plan))
    validation = open_validation(config, folder, geometry, world)
    check_measured(config, validation)
    end = world.from_first(lambda: last_step(plan, config.stop))
    total = end.steps
    stopping = Stopping(config.stop, world.from_first(lambda: Manifest.load(start).stopping if start else None))
    early = stopping.reason()
    if world.from_first(lambda: run.is_finished(start, total, early)):
        console.say(
            f"{run.path} is finished: {step_of(start):,} steps ({early or end.rule}), {start}; raise what is set under "
            "stop to go on"
        )
        return
    world.from_first(lambda: begin(run, config, settings, plan, folder / "tokenizer.json", total, start))
    base = {"path": config.model.path, "fingerprint": world.from_first(lambda: fingerprint_model(folder))}
    composed = compose(config, settings, world.size)
    engine = Engine(load_model(config, folder, composed, world), config, composed, world)
    done = resume(engine, plan, pinned, start, base, earlier, console) if start else 0
    world.from_first(lambda: run.cut_metrics(done))
    console.say(describe(engine, plan, config, world, end))
    tracker = Tracker(config.wandb, run.path, str(config.run.name), config.model_dump()) if world.first else None
    record = DataRecord(run.path, world, max_bad=config.data.max_bad, step=done)
    heart = open_heart(config, run, world, ended)
    report = Report(run, console, tracker)
    checkpoints = open_checkpoints(config, run, engine, heart, report, plan, base, start)
    last = done >= total or early is not None
    skips = Skips(run.path, world, most=config.optim.max_skipped, step=done)
    with Loader(
        plan,
        folder / "tokenizer.json",
        rank=world.rank,
        world=world.size,
        start_step=done,
        end_step=total,
        workers=config.data.workers,
        storage=storage_of(config, world),
        asked=lambda: preemption.asked is not None,
    ) as loader:
        training = Training(
            config=config,
            world=world,
            engine=engine,
            plan=plan,
            loader=loader,
            validation=validation,
            asking=open_asking(config, folder, geometry, engine, world),
            console=console,
            report=report,
            preemption=preemption,
            heart=heart,
            record=record,
            skips=skips,
            waiting=Waiting(config.data.workers),
            trace=trace,
            mixture=Mixture(plan, run.metrics, done) if world.first else None,
            arithmetic=engine.arithmetic,
            peak_flops=engine.peak_flops(),
            checkpoints=checkpoints,
            done=done,
            end=end,
            stopping=stopping,
            owes_validation=world.from_first(lambda: bool(validation) and owes_validation(run, config, done, last)),
        )
        state = training.go()
    if tracker is not None:
        if state == "finished":
            tracker.best_model()
        tracker.finish()
    if state == "finished":
        console.say(f"finished: {training.done:,} steps ({stopping.reason() or end.rule}); {checkpoints.newest}")
