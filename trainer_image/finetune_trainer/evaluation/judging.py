"""The pictures of a run from its beginning to its end: by the base model, on the way, by what was trained; judged by
the same code each time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from finetune_api import TrainingRun
from PIL import Image

from finetune_trainer.data.dataset import Dataset
from finetune_trainer.data.held_out import held_out
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.errors import ConfigurationError, Interrupted
from finetune_trainer.evaluation.drawing import BATCH, drawn_pictures, first_pictures
from finetune_trainer.evaluation.duty import JudgementDuty, PicturesDuty
from finetune_trainer.evaluation.encoders import Encoder, load_encoder
from finetune_trainer.evaluation.fixed_noise import FixedNoiseLoss
from finetune_trainer.evaluation.found import Judgement, Pictures
from finetune_trainer.evaluation.judge import Judge, Look
from finetune_trainer.evaluation.snapshots import SEEDS
from finetune_trainer.evaluation.wording import drawn_prompts, wording_of
from finetune_trainer.families.base import Family
from finetune_trainer.telemetry.listener import JudgementReport, Listener
from finetune_trainer.training.duties import Duty

MOST_TRAINING_PICTURES = 500
"""Of more, so many are compared with, evenly chosen: the mean over them is as good, and looking takes time."""


class Judging:
    """Made before the training; draws with the base model at once."""

    def __init__(
        self,
        run: TrainingRun,
        family: Family,
        encoder: Encoder | None,
        dataset: Dataset,
        classes: PictureSet,
        listener: Listener,
        should_stop: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            family: the base model, before a technique is installed.
            dataset: the user's pictures.
            classes: class pictures, if there are any.
            encoder: who judges; None draws pictures and judges nothing.

        Raises:
            Interrupted: `should_stop` said so.
        """
        self._run, self._family, self._listener, self._should_stop = run, family, listener, should_stop
        spec, validation = run.judgement, run.validation
        self._kept = validation.images_per_prompt
        self._count = max(self._kept, spec.images_per_prompt) if spec is not None and encoder else self._kept
        wording, self.prompts = wording_of(run.method), drawn_prompts(run)
        self._judge: Judge | None = None
        if encoder is not None:
            pictures = dataset.pictures
            held = held_out(run, len(pictures))
            judge = Judge(encoder, wording, self.prompts, _training_pictures(pictures, held))
            # who was not asked for keeps quiet about what it does not know
            self._judge = judge if spec is not None or judge.recognises else None
        self._losses: FixedNoiseLoss | None = None
        if spec is not None and encoder is not None:
            self._losses = FixedNoiseLoss(run, family, dataset, classes, wording, should_stop)
        self._base = self._look(self._count)
        self._judged: JudgementDuty | None = None
        if self._judge is not None and spec is not None and spec.every_steps is not None:
            self._judged = JudgementDuty(
                spec, self._judge, self._base, lambda: self._look(self._count), listener, clock
            )
        self._drawn: PicturesDuty | None = None
        if validation.every_steps is not None:
            self._drawn = PicturesDuty(validation.every_steps, lambda: self._look(SEEDS, judged=False), listener)

    @property
    def duties(self) -> tuple[Duty, ...]:
        """For the loop."""
        return tuple(duty for duty in (self._judged, self._drawn) if duty is not None)

    def finish(self, step: int) -> Pictures:
        """Judges the model as it is at the end, with the weights of `step`.

        Raises:
            Interrupted: the run is to stop.
        """
        known = self._judged.looks.get(step) if self._judged is not None else None
        last = known or self._look(self._count)
        way = dict(self._drawn.snapshots.rows() if self._drawn else ())
        way |= dict(self._judged.snapshots.rows() if self._judged else ())
        if way:
            way[0] = [list(row[:SEEDS]) for row in self._base.rows]
        judgement = self._conclude(step, last) if self._judge is not None else None
        return Pictures(self.prompts, self._base.rows, last.rows, tuple(sorted(way.items())), judgement)

    def _conclude(self, step: int, last: Look) -> Judgement:
        assert self._judge is not None, "somebody judges"
        after = self._judge.figures(self._base, last)
        best = self._judged.best if self._judged is not None else None
        best_step = best.step if best is not None else None
        values = {name: figure.value for name, figure in after.items()}
        self._listener.judged(JudgementReport(step, values, best_step, 0.0))
        return Judgement(
            encoder=self._judge.encoder.name,
            by_classifier=self._judge.recognises,
            images_per_prompt=self._count,
            step=step,
            before=self._judge.figures(self._base, self._base),
            after=after,
            history=tuple(self._judged.history) if self._judged is not None else (),
            best_step=best_step,
            time_share=self._judged.budget.share if self._judged is not None else 0.0,
        )

    def _look(self, count: int, judged: bool = True) -> Look:
        validation = self._run.validation

        def on_progress(done: int, total: int) -> None:
            self._listener.work(done, total, "pictures")
            if self._should_stop():
                raise Interrupted("stopped while drawing; the same run goes on from its last checkpoint")

        drawn = drawn_pictures(
            self._family, self.prompts, count, validation.inference_steps, validation.guidance_scale, on_progress
        )
        if self._judge is not None and judged:
            look = self._judge.look(drawn, self._kept)
            return look if self._losses is None else replace(look, losses=self._losses())
        return Look((), first_pictures(drawn, len(self.prompts), self._kept))


def encoder_of(run: TrainingRun, encoder: Path | None, base_model: Path, device: torch.device) -> Encoder | None:
    """Who judges a run: the encoder in the folder `encoder` if one was named, else the base model's own judge where it
    has one, else nobody.

    Raises:
        DataError: the encoder cannot be read.
        ConfigurationError: the run asks for a judgement, and there is nobody to judge.
    """
    if encoder is not None:
        return load_encoder(encoder, device)
    if (base_model / "classifier").is_dir():
        return load_encoder(base_model, device)
    if run.judgement is not None:
        raise ConfigurationError(
            f"spec.judgement.encoderUri is not set, and {run.base_model.uri} has no judge of its own; name an encoder "
            "such as hf://facebook/dinov2-small or hf://openai/clip-vit-large-patch14"
        )
    return None


def _training_pictures(pictures: PictureSet, held: Collection[int]) -> Iterable[Sequence[Image.Image]]:
    trained = [picture for number, picture in enumerate(pictures.pictures) if number not in held]
    count = min(len(trained), MOST_TRAINING_PICTURES)
    chosen = [trained[i * len(trained) // count] for i in range(count)]
    for start in range(0, count, BATCH):
        yield [picture.load() for picture in chosen[start : start + BATCH]]
