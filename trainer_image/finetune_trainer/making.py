"""Between the inputs and a folder that is ready to be published: everything that needs torch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_api.resolve import prior_of

from finetune_trainer.attempt import Attempt
from finetune_trainer.background import Background
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.data.class_images import ensure_class_images
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.device import device_name
from finetune_trainer.errors import Interrupted
from finetune_trainer.evaluation.found import Judgement
from finetune_trainer.evaluation.judging import Judging, encoder_of
from finetune_trainer.exports import export_weights
from finetune_trainer.exports.loadable import loadable
from finetune_trainer.exports.on_the_way import WeightsOnTheWay
from finetune_trainer.families import Family
from finetune_trainer.generation.record import Source
from finetune_trainer.generation.samples import draw_samples
from finetune_trainer.group.team import join
from finetune_trainer.methods import Method
from finetune_trainer.planning.falling import PlanFailed, begin_again
from finetune_trainer.planning.plan_file import PlanFile
from finetune_trainer.planning.plans import Plan
from finetune_trainer.preparing import prepare
from finetune_trainer.publish.file_store import FileStore
from finetune_trainer.publish.journal import Journal
from finetune_trainer.publish.leftovers import checkpoints_prefix
from finetune_trainer.publish.on_the_way import Exports
from finetune_trainer.showing import show_results
from finetune_trainer.telemetry.efficiency import Efficiency
from finetune_trainer.telemetry.listener import Listeners
from finetune_trainer.training.duties import Duty
from finetune_trainer.training.loop import train


@dataclass(frozen=True)
class Made:
    """What a run made, not yet published."""

    folder: Path
    """Everything that is to be published."""
    weights: tuple[str, ...]
    """What to load, relative to `folder`: a file, or the folder of a pipeline."""
    steps: int
    loss: float
    resumed_from_step: int | None
    device: str
    pictures_sha256: str
    picture_count: int
    judgement: Judgement | None


def make(attempt: Attempt, journal: Journal) -> Made:
    """Prepares, draws, trains, draws again, evaluates, exports. Where a plan does not do, all of it once more with the
    next one, from the last checkpoint.

    Args:
        journal: what is known of earlier attempts, for the report.

    Raises:
        RunError: with the exit code of how it ended; Interrupted once the state is saved.
    """
    efficiency = Efficiency()
    attempt = replace(attempt, listener=Listeners([attempt.listener, efficiency]))

    plan: Plan | None = None
    while True:
        try:
            return _made(attempt, journal, efficiency, plan)
        except PlanFailed as failed:
            if failed.to is None:
                raise
            plan = failed.to
        begin_again(plan, _plan_file(attempt), attempt.settings.seat is not None)
        attempt.listener.message(f"{plan.after[-1].words}. Once more: {plan.words}.")


def _made(attempt: Attempt, journal: Journal, efficiency: Efficiency, plan: Plan | None) -> Made:
    """As `make`, with a plan that is given, kept or chosen. Raises PlanFailed too."""
    run, inputs, settings = attempt.run, attempt.inputs, attempt.settings
    listener, should_stop = attempt.listener, attempt.should_stop
    listener.stage("Preparing")
    prepared = prepare(run, inputs, settings.seat)
    dataset, family, methods, device = prepared.dataset, prepared.family, prepared.methods, prepared.device
    team = join(settings.seat, device)
    # before the long work too, so that a wrong encoder is told at once
    encoder = encoder_of(run, inputs.encoder.path if inputs.encoder is not None else None, inputs.model.path, device)
    class_pictures = _class_pictures(attempt, family)

    listener.stage("DrawingBefore")
    classes = PictureSet.of(class_pictures, "class pictures")
    judging = Judging(run, family, encoder, dataset, classes, listener, should_stop)

    team.meet(should_stop)
    team.share([path.read_bytes() for path in class_pictures])
    with Background() as background:
        exports = _on_the_way(attempt, family, methods, background)
        outcome = train(
            run,
            family,
            methods,
            dataset,
            class_pictures,
            settings.cache(),
            _checkpoints(attempt),
            listener,
            should_stop,
            team=team,
            files=inputs.files,
            duties=[*judging.duties, *exports],
            background=background,
            plan=plan,
            plan_file=_plan_file(attempt),
        )
    if outcome.interrupted:
        raise Interrupted(
            f"stopped at step {outcome.step} of {outcome.total_steps}; the same run goes on from step "
            f"{outcome.saved_step}"
        )
    team.close()

    listener.stage("DrawingAfter")
    kept_step = outcome.step if outcome.best_step is None else outcome.best_step
    drawn = judging.finish(kept_step)

    folder = attempt.work / "results"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    listener.stage("Evaluating")
    show_results(folder, attempt, dataset.pictures, device_name(device), outcome, drawn, journal, efficiency)

    listener.stage("Exporting")
    exported = export_weights(run, family, [method.result() for method in methods], folder)
    if run.samples is not None:
        # outside of the results, so that a later attempt finds what this one has drawn
        samples, key = attempt.work / "samples", (attempt.digest, kept_step)
        draw_samples(family, run.samples, _source(attempt), key, samples, listener, should_stop)
        shutil.copytree(samples, folder / "samples")
    return Made(
        folder=folder,
        weights=loadable([path.relative_to(folder) for path in exported]),
        steps=outcome.step,
        loss=outcome.loss,
        resumed_from_step=outcome.resumed_from_step,
        device=device_name(device),
        pictures_sha256=dataset.pictures.digest,
        picture_count=len(dataset.pictures),
        judgement=drawn.judgement,
    )


def help_making(attempt: Attempt) -> None:
    """Trains with rank 0, and makes nothing of it. All that it may write to the store is that a plan was given up.

    Raises:
        RunError: with the exit code of how it ended.
    """
    try:
        _help(attempt)
    except PlanFailed as failed:
        if failed.to is None:
            raise
        begin_again(failed.to, _plan_file(attempt), in_group=True)


def _help(attempt: Attempt) -> None:
    """As `help_making`. Raises PlanFailed too."""
    settings, should_stop = attempt.settings, attempt.should_stop
    prepared = prepare(attempt.run, attempt.inputs, settings.seat)
    team = join(settings.seat, prepared.device)
    team.meet(should_stop)
    # drawn once, by rank 0: another GPU might draw them a little differently
    folder = attempt.work / f"class-pictures-{team.rank}"
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[bytes] = team.share(None)
    class_pictures = [folder / f"{index:05d}.png" for index in range(len(drawn))]
    for path, data in zip(class_pictures, drawn, strict=True):
        path.write_bytes(data)
    outcome = train(
        attempt.run,
        prepared.family,
        prepared.methods,
        prepared.dataset,
        class_pictures,
        settings.cache(),
        None,
        attempt.listener,
        should_stop,
        team=team,
        files=attempt.inputs.files,
    )
    if outcome.interrupted:
        raise Interrupted(f"stopped at step {outcome.step} of {outcome.total_steps}; rank 0 saves the state")
    team.close()


def _class_pictures(attempt: Attempt, family: Family) -> list[Path]:
    run, listener = attempt.run, attempt.listener
    prior = prior_of(run.method)
    if prior is None:
        return []
    listener.stage("DrawingClassImages")
    resolution, cache = run.dataset.resolution or family.resolution, attempt.settings.cache()
    return ensure_class_images(family, prior, run.training.seed, resolution, cache, listener, attempt.should_stop)


def _checkpoints(attempt: Attempt) -> Checkpoints:
    return Checkpoints(
        attempt.work / "checkpoints",
        attempt.kept_in,
        checkpoints_prefix(attempt.run.identity.uid),
        attempt.digest,
        attempt.settings.attempt,
        attempt.run.checkpoints.keep,
        attempt.should_stop.seconds_left,
    )


def _plan_file(attempt: Attempt) -> PlanFile:
    store = attempt.kept_in or FileStore(attempt.work)
    return PlanFile(store, checkpoints_prefix(attempt.run.identity.uid), attempt.digest)


def _source(attempt: Attempt) -> Source:
    """What samples are said to be drawn with."""
    run = attempt.run
    return Source(
        name=run.identity.name,
        technique=run.method.name,
        base_model=run.base_model.uri,
        base_model_revision=attempt.inputs.model.revision,
    )


def _on_the_way(attempt: Attempt, family: Family, methods: Sequence[Method], background: Background) -> list[Duty]:
    """Publishing weights every so many steps, where the run asks for it."""
    run = attempt.run
    if run.exports is None:
        return []
    exports = Exports(attempt.store, run.identity.uid, attempt.digest, attempt.settings.attempt)

    def publish(step: int, folder: Path, files: Sequence[Path]) -> None:
        exports.publish(step, folder, loadable(files))

    every, folder = run.exports.every_steps, attempt.work / "export"
    return [WeightsOnTheWay(run, family, methods, every, folder, publish, attempt.listener, background)]
