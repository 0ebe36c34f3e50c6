"""Between the inputs and a folder that is ready to be published: everything that needs torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_api import TrainingRun
from finetune_api.resolve import prior_of
from PIL import Image

from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.data.class_images import ensure_class_images
from finetune_trainer.data.dataset import read_dataset
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.describing import provenance_of, settings_of
from finetune_trainer.device import device_name, device_of
from finetune_trainer.errors import Interrupted
from finetune_trainer.evaluation.contact_sheet import contact_sheet
from finetune_trainer.evaluation.found import Judgement
from finetune_trainer.evaluation.judging import Judging, encoder_of
from finetune_trainer.evaluation.report import ReportData, attempt_rows, render_report
from finetune_trainer.exports import check_exports, export_weights
from finetune_trainer.exports.diffusers_lora import ADAPTER_FILE
from finetune_trainer.exports.on_the_way import WeightsOnTheWay
from finetune_trainer.families import Family, load_family
from finetune_trainer.generation.record import Source
from finetune_trainer.generation.samples import draw_samples
from finetune_trainer.group.team import join
from finetune_trainer.methods import make_methods
from finetune_trainer.publish.journal import Journal
from finetune_trainer.publish.leftovers import checkpoints_prefix
from finetune_trainer.publish.on_the_way import Exports
from finetune_trainer.publish.store import Store
from finetune_trainer.settings import Settings
from finetune_trainer.signals import Stop
from finetune_trainer.telemetry.listener import Listener
from finetune_trainer.training.loop import train
from finetune_trainer.training.schedule import learning_rate_factor

if TYPE_CHECKING:
    import torch

    from finetune_trainer.run import Inputs

SHOWN_TRAINING_PICTURES = 12


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
    """Prepares, draws, trains, draws again, evaluates, exports.

    Args:
        digest: SHA-256 of the TrainingRun.
        work: scratch folder of this run; what is in it may be used again by a later attempt on this machine.
        store: the output, where checkpoints outlive the pod. A laptop's stay in `work` when the output is a folder.
        journal: what is known of earlier attempts, for the report.

    Raises:
        RunError: with the exit code of how it ended; Interrupted once the state is saved.
    """
    listener.stage("Preparing")
    pictures = PictureSet.open(inputs.pictures)
    # before the long work, so that a missing caption is told at once
    read_dataset(pictures, run.dataset)
    device = device_of(settings.seat)
    family = _load_family(run, inputs, device)
    team = join(settings.seat, device)
    # before the long work, so that a wrong encoder is told at once
    encoder = encoder_of(run, inputs.encoder.path if inputs.encoder is not None else None, inputs.model.path, device)
    class_pictures = _class_pictures(run, family, settings, listener, should_stop)

    listener.stage("DrawingBefore")
    classes = PictureSet.of(class_pictures, "class pictures")
    judging = Judging(run, family, encoder, pictures, classes, listener, should_stop)

    # a pod's disk ends with it, also where the output is a volume
    remote = store if settings.in_pod or run.output.uri.startswith("s3://") else None
    prefix = checkpoints_prefix(run.identity.uid)
    checkpoints = Checkpoints(
        work / "checkpoints",
        remote,
        prefix,
        digest,
        settings.attempt,
        run.checkpoints.keep,
        should_stop.seconds_left,
    )
    methods = make_methods(run.method, run.training.seed)
    on_the_way = []
    if run.exports is not None:
        exports = Exports(store, run.identity.uid, digest, settings.attempt)

        def publish(step: int, folder: Path, files: Sequence[Path]) -> None:
            exports.publish(step, folder, loadable(files))

        every = run.exports.every_steps
        on_the_way.append(WeightsOnTheWay(run, family, methods, every, work / "export", publish, listener))
    team.meet(should_stop)
    team.share([path.read_bytes() for path in class_pictures])
    cache = settings.cache()
    outcome = train(
        run,
        family,
        pictures,
        class_pictures,
        cache,
        checkpoints,
        listener,
        should_stop,
        team,
        inputs.files,
        [*judging.duties, *on_the_way],
        methods,
    )
    if outcome.interrupted:
        raise Interrupted(
            f"stopped at step {outcome.step} of {outcome.total_steps}; the same run goes on from step "
            f"{outcome.saved_step}"
        )

    team.close()

    listener.stage("DrawingAfter")
    drawn = judging.finish(outcome.best_step if outcome.best_step is not None else outcome.step)

    folder = work / "results"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    listener.stage("Evaluating")
    shown = [picture.load() for picture in pictures.pictures[:SHOWN_TRAINING_PICTURES]]
    _save_pictures(folder / "pictures", drawn.before, drawn.after)
    title = f"{run.identity.name}: {run.method.name} of {run.base_model.uri}"
    contact_sheet(title, shown, drawn.prompts, drawn.before, drawn.after).save(folder / "contact_sheet.png")
    report = ReportData(
        title=title,
        method=run.method.name,
        pictures=drawn,
        training_pictures=shown,
        losses=outcome.losses,
        settings=settings_of(run, outcome.total_steps),
        provenance=provenance_of(run, digest, inputs, pictures, device_name(device)) | {"Attempts": journal.summary()},
        learning_rates=[
            run.training.learning_rate * learning_rate_factor(run.training.scheduler, step, outcome.total_steps)
            for step in range(len(outcome.losses))
        ],
        dataset=outcome.data.rows(),
        attempts=attempt_rows(journal.attempts()),
    )
    (folder / "report.html").write_text(render_report(report), "utf-8")
    (folder / "data_report.json").write_text(outcome.data.to_json(), "utf-8")

    listener.stage("Exporting")
    exported = export_weights(run, family, [method.result() for method in outcome.methods], folder)
    if run.samples is not None:
        # outside of the results, so that a later attempt finds what this one has drawn
        samples = work / "samples"
        source = Source(
            name=run.identity.name,
            technique=run.method.name,
            base_model=run.base_model.uri,
            base_model_revision=inputs.model.revision,
        )
        draw_samples(family, run.samples, source, (digest, outcome.step), samples, listener, should_stop)
        shutil.copytree(samples, folder / "samples")
    return Made(
        folder=folder,
        weights=loadable([path.relative_to(folder) for path in exported]),
        steps=outcome.step,
        loss=outcome.loss,
        resumed_from_step=outcome.resumed_from_step,
        device=device_name(device),
        pictures_sha256=pictures.digest,
        picture_count=len(pictures),
        judgement=drawn.judgement,
    )


def help_making(
    run: TrainingRun, inputs: Inputs, work: Path, settings: Settings, listener: Listener, should_stop: Stop
) -> None:
    """Trains with rank 0, and makes nothing of it.

    Raises:
        RunError: with the exit code of how it ended.
    """
    pictures = PictureSet.open(inputs.pictures)
    read_dataset(pictures, run.dataset)
    device = device_of(settings.seat)
    family = _load_family(run, inputs, device)
    team = join(settings.seat, device)
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
        family,
        pictures,
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


def _load_family(run: TrainingRun, inputs: Inputs, device: torch.device) -> Family:
    """The base model. What could not be written of it in the end is refused at once."""
    family = load_family(inputs.model.path, device, run.training.clip_skip)
    check_exports(run, family)
    return family


def _class_pictures(
    run: TrainingRun, family: Family, settings: Settings, listener: Listener, should_stop: Callable[[], bool]
) -> list[Path]:
    prior = prior_of(run.method)
    if prior is None:
        return []
    listener.stage("DrawingClassImages")
    resolution = run.dataset.resolution or family.resolution
    return ensure_class_images(family, prior, run.training.seed, resolution, settings.cache(), listener, should_stop)


def _save_pictures(
    folder: Path, before: Sequence[Sequence[Image.Image]], after: Sequence[Sequence[Image.Image]]
) -> None:
    for when, rows in (("before", before), ("after", after)):
        for prompt, row in enumerate(rows):
            for seed, picture in enumerate(row):
                path = folder / when / f"prompt-{prompt}-seed-{seed}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)


def loadable(files: Sequence[Path]) -> tuple[str, ...]:
    """What people load, Diffusers' layout first: a whole pipeline by its folder, everything else file by file."""
    whole = ["pipeline"] if Path("pipeline/model_index.json") in files else []
    single = [path for path in files if path.parts[0] != "pipeline" and path.suffix in (".safetensors", ".pt")]
    single.sort(key=lambda path: (path.name != ADAPTER_FILE, path))
    return (*whole, *(path.as_posix() for path in single))
