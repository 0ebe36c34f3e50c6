"""Between the inputs and a folder that is ready to be published: everything that needs torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api import TrainingRun
from finetune_api.resolve import prior_of

from finetune_trainer.background import Background
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.checkpoints.plan_file import PlanFile
from finetune_trainer.data.class_images import ensure_class_images
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.device import device_name
from finetune_trainer.engines.falling import PlanFailed, begin_again
from finetune_trainer.engines.planning import Plan
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
from finetune_trainer.preparing import prepare
from finetune_trainer.publish.file_store import FileStore
from finetune_trainer.publish.journal import Journal
from finetune_trainer.publish.leftovers import checkpoints_prefix
from finetune_trainer.publish.on_the_way import Exports
from finetune_trainer.publish.store import Store
from finetune_trainer.settings import Settings
from finetune_trainer.showing import show_results
from finetune_trainer.signals import Stop
from finetune_trainer.telemetry.efficiency import Efficiency
from finetune_trainer.telemetry.listener import Listener, Listeners
from finetune_trainer.training.duties import Duty
from finetune_trainer.training.loop import train

if TYPE_CHECKING:
    from finetune_trainer.run import Inputs


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


def make(
    run: TrainingRun,
    digest: str,
    inputs: Inputs,
    work: Path,
    store: Store,
    settings: Settings,
    journal: Journal,
    listener: Listener,
    should_stop: Stop,
) -> Made:
    """Prepares, draws, trains, draws again, evaluates, exports. Where a plan does not do, all of it once more with the
    next one, from the last checkpoint.

    Args:
        digest: SHA-256 of the TrainingRun.
        work: scratch folder of this run; what is in it may be used again by a later attempt on this machine.
        store: the output, where checkpoints outlive the pod. A laptop's stay in `work` when the output is a folder.
        journal: what is known of earlier attempts, for the report.

    Raises:
        RunError: with the exit code of how it ended; Interrupted once the state is saved.
    """
    efficiency = Efficiency()
    listener = Listeners([listener, efficiency])

    plan: Plan | None = None
    while True:
        try:
            return _made(run, digest, inputs, work, store, settings, journal, listener, efficiency, should_stop, plan)
        except PlanFailed as failed:
            if failed.to is None:
                raise
            plan = failed.to
        begin_again(plan, _plan_file(run, digest, work, store, settings), settings.seat is not None)
        listener.message(f"{plan.after[-1].words}. Once more: {plan.words}.")


def _made(
    run: TrainingRun,
    digest: str,
    inputs: Inputs,
    work: Path,
    store: Store,
    settings: Settings,
    journal: Journal,
    listener: Listener,
    efficiency: Efficiency,
    should_stop: Stop,
    plan: Plan | None,
) -> Made:
    """As `make`, with a plan that is given, kept or chosen. Raises PlanFailed too."""
    listener.stage("Preparing")
    prepared = prepare(run, inputs, settings.seat)
    dataset, family, methods, device = prepared.dataset, prepared.family, prepared.methods, prepared.device
    team = join(settings.seat, device)
    # before the long work too, so that a wrong encoder is told at once
    encoder = encoder_of(run, inputs.encoder.path if inputs.encoder is not None else None, inputs.model.path, device)
    class_pictures = _class_pictures(run, family, settings, listener, should_stop)

    listener.stage("DrawingBefore")
    classes = PictureSet.of(class_pictures, "class pictures")
    judging = Judging(run, family, encoder, dataset, classes, listener, should_stop)

    team.meet(should_stop)
    team.share([path.read_bytes() for path in class_pictures])
    with Background() as background:
        exports = _on_the_way(run, digest, family, methods, work, store, settings, listener, background)
        outcome = train(
            run,
            family,
            methods,
            dataset,
            class_pictures,
            settings.cache(),
            _checkpoints(run, digest, work, store, settings, should_stop),
            listener,
            should_stop,
            team,
            inputs.files,
            [*judging.duties, *exports],
            background,
            plan,
            _plan_file(run, digest, work, store, settings),
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

    folder = work / "results"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    listener.stage("Evaluating")
    show_results(
        folder, run, digest, inputs, dataset.pictures, device_name(device), outcome, drawn, journal, efficiency
    )

    listener.stage("Exporting")
    exported = export_weights(run, family, [method.result() for method in methods], folder)
    if run.samples is not None:
        # outside of the results, so that a later attempt finds what this one has drawn
        samples, source = work / "samples", _source(run, inputs)
        draw_samples(family, run.samples, source, (digest, kept_step), samples, listener, should_stop)
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


def help_making(
    run: TrainingRun,
    digest: str,
    inputs: Inputs,
    work: Path,
    store: Store,
    settings: Settings,
    listener: Listener,
    should_stop: Stop,
) -> None:
    """Trains with rank 0, and makes nothing of it. All that it may write to `store` is that a plan was given up.

    Raises:
        RunError: with the exit code of how it ended.
    """
    try:
        _help(run, inputs, work, settings, listener, should_stop)
    except PlanFailed as failed:
        if failed.to is None:
            raise
        begin_again(failed.to, _plan_file(run, digest, work, store, settings), in_group=True)


def _help(
    run: TrainingRun, inputs: Inputs, work: Path, settings: Settings, listener: Listener, should_stop: Stop
) -> None:
    """As `help_making`. Raises PlanFailed too."""
    prepared = prepare(run, inputs, settings.seat)
    team = join(settings.seat, prepared.device)
    team.meet(should_stop)
    # drawn once, by rank 0: another GPU might draw them a little differently
    folder = work / f"class-pictures-{team.rank}"
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[bytes] = team.share(None)
    class_pictures = [folder / f"{index:05d}.png" for index in range(len(drawn))]
    for path, data in zip(class_pictures, drawn, strict=True):
        path.write_bytes(data)
    outcome = train(
        run,
        prepared.family,
        prepared.methods,
        prepared.dataset,
        class_pictures,
        settings.cache(),
        None,
        listener,
        should_stop,
        team,
        inputs.files,
    )
    if outcome.interrupted:
        raise Interrupted(f"stopped at step {outcome.step} of {outcome.total_steps}; rank 0 saves the state")
    team.close()


def _class_pictures(
    run: TrainingRun, family: Family, settings: Settings, listener: Listener, should_stop: Callable[[], bool]
) -> list[Path]:
    prior = prior_of(run.method)
    if prior is None:
        return []
    listener.stage("DrawingClassImages")
    resolution = run.dataset.resolution or family.resolution
    return ensure_class_images(family, prior, run.training.seed, resolution, settings.cache(), listener, should_stop)


def _checkpoints(
    run: TrainingRun, digest: str, work: Path, store: Store, settings: Settings, should_stop: Stop
) -> Checkpoints:
    remote, prefix = _remote(run, store, settings), checkpoints_prefix(run.identity.uid)
    keep, left = run.checkpoints.keep, should_stop.seconds_left
    return Checkpoints(work / "checkpoints", remote, prefix, digest, settings.attempt, keep, left)


def _plan_file(run: TrainingRun, digest: str, work: Path, store: Store, settings: Settings) -> PlanFile:
    return PlanFile(_remote(run, store, settings) or FileStore(work), checkpoints_prefix(run.identity.uid), digest)


def _remote(run: TrainingRun, store: Store, settings: Settings) -> Store | None:
    # a pod's disk ends with it, also where the output is a volume
    return store if settings.in_pod or run.output.uri.startswith("s3://") else None


def _source(run: TrainingRun, inputs: Inputs) -> Source:
    """What samples are said to be drawn with."""
    return Source(
        name=run.identity.name,
        technique=run.method.name,
        base_model=run.base_model.uri,
        base_model_revision=inputs.model.revision,
    )


def _on_the_way(
    run: TrainingRun,
    digest: str,
    family: Family,
    methods: Sequence[Method],
    work: Path,
    store: Store,
    settings: Settings,
    listener: Listener,
    background: Background,
) -> list[Duty]:
    """Publishing weights every so many steps, where the run asks for it."""
    if run.exports is None:
        return []
    exports = Exports(store, run.identity.uid, digest, settings.attempt)

    def publish(step: int, folder: Path, files: Sequence[Path]) -> None:
        exports.publish(step, folder, loadable(files))

    every, folder = run.exports.every_steps, work / "export"
    return [WeightsOnTheWay(run, family, methods, every, folder, publish, listener, background)]
