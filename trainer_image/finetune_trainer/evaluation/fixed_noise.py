"""The loss with noise that is the same at each judgement: unlike the loss of single steps, it can be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from finetune_api import TrainingRun
from finetune_api.dataset import CaptionsSpec
from finetune_api.resolve import prior_of

from finetune_trainer.data.dataset import Dataset
from finetune_trainer.data.draw import Purpose, draw
from finetune_trainer.data.held_out import held_out
from finetune_trainer.data.latents import Crops, Latents, View
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.engines.precision import autocast, precision_of
from finetune_trainer.errors import Interrupted
from finetune_trainer.evaluation.intervals import Figure, mean
from finetune_trainer.evaluation.wording import Wording
from finetune_trainer.families.base import Cond, Family
from finetune_trainer.training.loss import sample_losses
from finetune_trainer.training.making_samples import shapes_of, windows_for

TIMESTEPS = 8
"""Noise levels for each picture, evenly spaced."""
MOST = 32
"""Pictures of a kind."""


@dataclass(frozen=True)
class _Sample:
    picture: int
    caption: str
    view: View


class FixedNoiseLoss:
    """Mean squared error on the user's pictures and on class pictures. Pictures that were held out are told as
    `validationLoss`; where none could be spared, the trained ones as `trainingLoss`, which also falls when they are
    learned by heart. Class pictures are told as `classLoss`. Shapes, precision and the windows that captions are read
    in are the training's."""

    def __init__(
        self,
        run: TrainingRun,
        family: Family,
        dataset: Dataset,
        classes: PictureSet,
        wording: Wording,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """
        Args:
            classes: class pictures, if there are any.
            should_stop: asked before each picture.
        """
        self._family, self._seed, self._should_stop = family, run.training.seed, should_stop
        self._precision = precision_of(run.training, family.device)
        side = run.dataset.resolution or family.resolution
        pictures = dataset.pictures
        held = held_out(run, len(pictures))
        latents = Latents(family, pictures, Crops(), None, dataset.masks)
        shapes = shapes_of(pictures, run.dataset, side, crops=1)
        called = [one.caption or wording.subject_prompt for one in dataset.captions]
        own = [
            _Sample(i, called[i], latents.get(i, shapes[i], False)) for i in _some(sorted(held) or range(len(pictures)))
        ]
        self._samples: dict[str, list[_Sample]] = {"validationLoss" if held else "trainingLoss": own}
        prior = prior_of(run.method)
        self._prompts = {*called, prior.class_prompt} if prior is not None else {*called}
        self._captions = run.dataset.captions or CaptionsSpec()
        if prior is not None and len(classes):
            views = Latents(family, classes, Crops(), None)
            self._samples["classLoss"] = [
                _Sample(i, prior.class_prompt, views.get(i, (side, side), False)) for i in _some(range(len(classes)))
            ]

    @torch.no_grad()
    def __call__(self) -> Mapping[str, Figure]:
        """With the model as it is now; each picture counts once.

        Raises:
            Interrupted: `should_stop` said so.
        """
        # only now: a word that is being learned is one token before it is known, and several afterwards
        windows = windows_for(self._prompts, self._captions, self._family)
        with autocast(self._precision, self._family.device):
            return {
                name: mean([self._loss(sample, windows) for sample in samples])
                for name, samples in self._samples.items()
            }

    def _loss(self, sample: _Sample, windows: int) -> float:
        if self._should_stop():
            raise Interrupted("stopped while judging; the same run goes on from its last checkpoint")
        family, device = self._family, self._family.device
        moments = sample.view.moments.to(device)
        levels = [(2 * k + 1) * family.timesteps // (2 * TIMESTEPS) for k in range(TIMESTEPS)]
        shape = tuple(moments.mean.shape)
        noise = torch.cat(
            [draw(self._seed, Purpose.VALIDATION, k, sample.picture).noise(shape) for k in range(TIMESTEPS)]
        )
        timesteps, noise = torch.tensor(levels, device=device), noise.to(device)
        # the mean of what the VAE sees: its own noise would only blur
        latents = family.latents(moments, torch.zeros_like(moments.mean)).expand(TIMESTEPS, -1, -1, -1)
        cond = Cond.stack([family.encode_text(family.tokenize([sample.caption], windows))] * TIMESTEPS)
        sizes = torch.tensor([sample.view.sizes] * TIMESTEPS, device=device)
        prediction = family.predict(family.add_noise(latents, noise, timesteps), timesteps, cond, sizes)
        mask = sample.view.mask
        masks = None if mask is None else mask.to(device).expand(TIMESTEPS, -1, -1, -1)
        return float(sample_losses(prediction, family.target(latents, noise, timesteps), masks).mean())


def _some(numbers: Sequence[int]) -> list[int]:
    """At most MOST of them, evenly chosen."""
    count = min(len(numbers), MOST)
    return [numbers[i * len(numbers) // count] for i in range(count)]
