"""The loop: resume, step, report, checkpoint, stop. Everything that happens in it can be read here from top to
bottom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from finetune_api import TrainingRun

from finetune_trainer.background import Background
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.data.ahead import Ahead
from finetune_trainer.data.dataset import Dataset
from finetune_trainer.data.encoding import encode_views
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.data.report import DataReport
from finetune_trainer.data.samples import Batch, Samples
from finetune_trainer.digests import sha256_of
from finetune_trainer.engines import make_engine
from finetune_trainer.engines.precision import precision_of
from finetune_trainer.errors import ConfigurationError, RunError
from finetune_trainer.families.base import Family
from finetune_trainer.group.team import ALONE, Team
from finetune_trainer.methods import Files, Method, NoFiles, needs_of
from finetune_trainer.planning.falling import carrying_out
from finetune_trainer.planning.gathering import gather_facts
from finetune_trainer.planning.plan_file import PlanFile
from finetune_trainer.planning.plans import Facts, Plan, choose, resume
from finetune_trainer.sources.files import starting_uris
from finetune_trainer.telemetry.listener import EngineReport, Listener
from finetune_trainer.training.arithmetic import ideal_seconds
from finetune_trainer.training.course import Course
from finetune_trainer.training.duties import Duty, Roster
from finetune_trainer.training.history import History
from finetune_trainer.training.making_samples import make_samples
from finetune_trainer.training.readings import Reading, Watch, lateness
from finetune_trainer.training.schedule import check_warmup, learning_rate_factor, total_steps
from finetune_trainer.training.skips import Skips
from finetune_trainer.training.step_module import StepModule
from finetune_trainer.training.twice import compute_twice


@dataclass(frozen=True)
class TrainOutcome:
    """How a training ended. The family now has the technique installed, trained as far as `step`."""

    step: int
    total_steps: int
    loss: float
    """Mean over the last steps; what a single step loses says little, for its noise levels are drawn."""
    interrupted: bool
    losses: tuple[float, ...]
    """Of each step from the first one on, earlier attempts included."""
    learning_rates: tuple[float, ...]
    """As losses: what the update of each step was multiplied by, with what the optimizer found out itself."""
    resumed_from_step: int | None
    saved_step: int
    """Step of the newest checkpoint that another attempt can go on from; 0 without."""
    best_step: int | None
    """Step whose weights a duty found best, and which the family therefore has now; None: those of the last step."""
    skipped: int
    """Steps that changed nothing, because their loss or gradient was not finite."""
    data: DataReport
    """On what was trained on."""


def train(
    run: TrainingRun,
    family: Family,
    methods: Sequence[Method],
    dataset: Dataset,
    class_pictures: Sequence[Path],
    cache_dir: Path | None,
    checkpoints: Checkpoints | None,
    listener: Listener,
    should_stop: Callable[[], bool],
    *,
    team: Team = ALONE,
    files: Files | None = None,
    duties: Sequence[Duty] = (),
    background: Background | None = None,
    plan: Plan | None = None,
    plan_file: PlanFile | None = None,
) -> TrainOutcome:
    """Trains from the newest checkpoint, or from the start, to the last step or until `should_stop`.

    Args:
        run: what to do.
        family: the base model; `methods` are installed into it.
        methods: the techniques of `run`, not yet installed.
        dataset: the user's pictures.
        class_pictures: for prior preservation; empty without.
        cache_dir: where encoded pictures and texts are kept between runs; None keeps them in memory only.
        checkpoints: where the state is saved and looked for; None in all processes of a group but rank 0.
        listener: hears of every step.
        should_stop: asked between steps; the state is saved before returning.
        team: the processes that train together. Where one of them is to stop, all stop after the same step.
        files: what a technique starts from; None where it needs none.
        duties: what is to be done every so many steps; those of rank 0 count in all processes of a group.
        background: where checkpoints are stored, where duties have work done there too; None for a thread of its own.
        plan: how steps are executed, where that was decided; else as the attempt before had it, or chosen now.
        plan_file: where the plan in force is kept for the next attempt; None: nowhere.

    Raises:
        DataError: a picture cannot be used.
        NonFiniteLoss: the training diverged; the message names the step.
        ConfigurationError: the run asks for what this trainer does not carry out, or the store refuses.
        PlanFailed: the GPU's memory does not suffice, or no step can be recorded. `family` is of no use any more.
        PeerLost: another process of the group is gone.
    """
    spec = run.training
    classes = PictureSet.of(class_pictures, "class pictures")
    groups = [group for method in methods for group in method.install(family, files or NoFiles())]
    samples = make_samples(run, family, methods, dataset, classes, cache_dir, team)
    for line in samples.report.lines():
        listener.message(line)
    total = total_steps(spec, samples.samples_per_epoch, team.size)
    check_warmup(spec.scheduler, total)
    encode_views(samples, total, listener, should_stop)
    module = StepModule(family, needs_of(methods), spec.loss).train()
    example = samples.step(0)
    side = family.pixels_per_latent
    shapes = [(bucket.height // side, bucket.width // side) for bucket in samples.report.buckets]
    facts = gather_facts(
        run.engine, module, family.parts.values(), groups, spec, example, total, shapes, family.device, team.size
    )
    plan = team.share(plan or _plan(facts, plan_file, team))
    fell_from = plan.after[-1].does if plan.after else None
    listener.planned(EngineReport(plan.kind, plan.words, plan.why, plan.predicted_bytes, fell_from))
    if plan.checkpointing:
        for part in module.parts.values():
            compute_twice(part)
    engine = make_engine(plan.engine, family.device, team, plan.cuts, cache_dir)
    starts = _digests_of(starting_uris(run.method), files or NoFiles())
    digests = {"model": family.digest, "classPictures": classes.digest, **samples.digests, **starts}
    skips = Skips(precision_of(spec, family.device), total)
    trained = [value for group in groups for value in group.parameters.values()]
    ideal = ideal_seconds(module, trained, example, precision_of(spec, family.device), family.device)
    history = History(listener, skips, total, samples.pictures_per_step, lateness(family.device), ideal)
    with ExitStack() as stack:
        stack.enter_context(carrying_out(facts, plan))
        engine.prepare(module, groups, plan.applied_to(spec), example)
        course = Course(
            engine,
            module,
            device=family.device,
            roster=Roster(duties, team, total),
            history=history,
            checkpoints=checkpoints,
            often=run.checkpoints,
            digests=digests,
            listener=listener,
            team=team,
            background=stack.enter_context(Background()) if background is None else background,
        )
        resumed_from = course.resume()
        _keep(plan, plan_file, team, listener)
        listener.begins(total, resumed_from)
        listener.stage("Training")
        course.attend()
        ahead = stack.enter_context(Ahead(_ready_for(family.device, samples), range(course.step, total), family.device))
        while not (course.step >= total or course.ended or course.interrupted or team.any(should_stop())):
            watch = Watch(family.device)
            batches = ahead.take()
            watch.samples_are_there()
            result = engine.step(batches, learning_rate_factor(spec.scheduler, course.step, total))
            history.add(Reading(result, watch))
            if course.has_duties:
                with ahead.paused():
                    course.attend()
            course.pass_boundary()
        # at the end too: a failure while drawing, exporting or publishing must not cost the training
        course.finish()
    interrupted = course.interrupted or (course.step < total and not course.ended)
    if not interrupted:
        course.settle()
    return TrainOutcome(
        step=course.step,
        total_steps=total,
        loss=history.loss,
        interrupted=interrupted,
        losses=history.past.losses,
        learning_rates=history.past.learning_rates,
        resumed_from_step=resumed_from,
        saved_step=course.saved_step,
        best_step=course.best.step if course.best is not None else None,
        skipped=skips.count,
        data=samples.report,
    )


def _plan(facts: Facts, plan_file: PlanFile | None, team: Team) -> Plan:
    """Rank 0's counts."""
    kept = plan_file.read() if plan_file is not None and team.leads else None
    return choose(facts) if kept is None else resume(facts, kept)


def _keep(plan: Plan, plan_file: PlanFile | None, team: Team, listener: Listener) -> None:
    if plan_file is None or not team.leads:
        return
    try:
        plan_file.write(plan)
    except ConfigurationError:
        raise
    except RunError as error:
        # as with a checkpoint, a store that fails for a moment must not end the training
        listener.message(f"The plan was not stored, and another attempt makes its own: {error}")


def _ready_for(device: torch.device, samples: Samples) -> Callable[[int], list[Batch]]:
    """How batches are made that `device` takes without a pause."""
    if device.type == "cpu":
        return samples.step
    return lambda step: [batch.pinned() for batch in samples.step(step)]


def _digests_of(uris: Mapping[str, str], files: Files) -> dict[str, str]:
    """SHA-256 of each file that a technique starts from, by the field that names it (`uris`: URI → field)."""
    return {field: sha256_of(files.path(uri)) for uri, field in uris.items()}
