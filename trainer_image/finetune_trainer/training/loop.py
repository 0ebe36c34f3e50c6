"""The loop: resume, step, report, checkpoint, stop. Everything that happens in it can be read here from top to
bottom."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from finetune_api import TrainingRun

from finetune_trainer.checkpoints import Checkpoints, TrainingState
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.data.report import DataReport
from finetune_trainer.engines import make_engine
from finetune_trainer.errors import ConfigurationError, RunError
from finetune_trainer.families.base import Family
from finetune_trainer.group.team import ALONE, Team
from finetune_trainer.methods import Files, Method, NoFiles, make_methods, needs_of
from finetune_trainer.telemetry.listener import Listener, StepReport
from finetune_trainer.training.duties import Duty
from finetune_trainer.training.making_samples import make_samples
from finetune_trainer.training.schedule import learning_rate_factor, total_steps
from finetune_trainer.training.step_module import StepModule

LOSS_WINDOW = 20


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
    methods: tuple[Method, ...]
    resumed_from_step: int | None
    saved_step: int
    """Step of the newest checkpoint that another attempt can go on from; 0 without."""
    data: DataReport
    """On what was trained on."""


def train(
    run: TrainingRun,
    family: Family,
    pictures: PictureSet,
    class_pictures: Sequence[Path],
    cache_dir: Path | None,
    checkpoints: Checkpoints | None,
    listener: Listener,
    should_stop: Callable[[], bool],
    team: Team = ALONE,
    files: Files | None = None,
    duties: Sequence[Duty] = (),
) -> TrainOutcome:
    """Trains from the newest checkpoint, or from the start, to the last step or until `should_stop`.

    Args:
        run: what to do.
        family: the base model; a technique is installed into it.
        pictures: the user's.
        class_pictures: for prior preservation; empty without.
        cache_dir: where latents are kept between attempts; None keeps them in memory only.
        checkpoints: where the state is saved and looked for; None in all processes of a group but rank 0.
        listener: hears of every step.
        should_stop: asked between steps; the state is saved before returning.
        team: the processes that train together. Where one of them is to stop, all stop after the same step.
        files: what a technique starts from; None where it needs none.
        duties: what is to be done every so many steps; empty in all processes of a group but rank 0.

    Raises:
        DataError: a picture cannot be used.
        NonFiniteLoss: the training diverged.
        ConfigurationError: the run asks for what this trainer does not carry out, or the store refuses.
        PeerLost: another process of the group is gone.
    """
    spec = run.training
    if spec.deterministic:
        # torch refuses cuBLAS without it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    classes = PictureSet.of(class_pictures, "class pictures")
    methods = make_methods(run.method, spec.seed)
    groups = [group for method in methods for group in method.install(family, files or NoFiles())]
    samples = make_samples(run, family, methods, pictures, classes, cache_dir, team)
    for line in samples.report.lines():
        listener.message(line)
    module = StepModule(family, needs_of(methods), spec.loss).train()
    if spec.gradient_checkpointing:
        for part in module.parts.values():
            part.enable_gradient_checkpointing()
    engine = make_engine(run.engine, family.device, team)
    engine.prepare(module, groups, spec, samples.step(0))
    digests = {"model": family.digest, "classPictures": classes.digest, **samples.digests}

    _compare(digests, team)
    found = _found(checkpoints, digests, listener)
    losses, resumed = team.share((list(found.losses), True) if found is not None else ([], False))
    if resumed:
        engine.load(found.engine if found is not None else None)
    step, total = len(losses), total_steps(spec, samples.samples_per_epoch, team.size)
    resumed_from = step if resumed else None
    listener.begins(total, resumed_from)
    listener.stage("Training")
    saved_step, saved_at = step, time.monotonic()

    def save() -> None:
        nonlocal saved_step, saved_at
        if checkpoints is None:
            return
        began = time.monotonic()
        saved = _save(checkpoints, TrainingState(step, engine.state(), tuple(losses), digests), listener)
        saved_at = time.monotonic()
        if saved:
            saved_step = step
            listener.checkpoint(step, saved_at - began)

    while step < total and not team.any(should_stop()):
        began = time.monotonic()
        factor = learning_rate_factor(spec.scheduler, step, total)
        result = engine.step(samples.step(step), factor)
        losses.append(float(result.loss))
        step += 1
        listener.step(
            StepReport(
                step=step,
                total_steps=total,
                loss=_mean(losses),
                learning_rate=spec.learning_rate * factor,
                grad_norm=float(result.grad_norm),
                images=samples.pictures_per_step,
                seconds=time.monotonic() - began,
            )
        )
        every = run.checkpoints.every_steps
        if time.monotonic() - saved_at >= run.checkpoints.every_seconds or (every and step % every == 0):
            save()
    if step > saved_step:
        # at the end too: a failure while drawing, exporting or publishing must not cost the training
        save()
    engine.gather()
    return TrainOutcome(
        step,
        total,
        _mean(losses),
        step < total,
        tuple(losses),
        methods,
        resumed_from,
        saved_step,
        samples.report,
    )


def _compare(digests: dict[str, str], team: Team) -> None:
    leaders = team.share(digests)
    changed = sorted(name for name in digests if digests[name] != leaders[name])
    if changed:
        raise RunError(f"the processes of the group fetched different things ({', '.join(changed)}); was one replaced?")


def _found(checkpoints: Checkpoints | None, digests: dict[str, str], listener: Listener) -> TrainingState | None:
    found = checkpoints.latest() if checkpoints is not None else None
    if found is None or checkpoints is None:
        return None
    step, state = found
    changed = sorted(name for name in digests if state.digests.get(name) != digests[name])
    if changed:
        listener.message(f"The checkpoint of step {step} is not used: {', '.join(changed)} changed since.")
        # or they, being ahead, would push out the new ones
        checkpoints.clear()
        return None
    return state


def _save(checkpoints: Checkpoints, state: TrainingState, listener: Listener) -> bool:
    """Whether another attempt can go on from it."""
    try:
        checkpoints.save(state.step, state)
    except ConfigurationError:
        raise
    except RunError as error:
        # it stands on this machine; a store that fails for a moment must not end the training
        listener.message(f"The checkpoint of step {state.step} was not uploaded: {error}")
        return False
    return True


def _mean(losses: Sequence[float]) -> float:
    window = losses[-LOSS_WINDOW:]
    return sum(window) / len(window) if window else 0.0
