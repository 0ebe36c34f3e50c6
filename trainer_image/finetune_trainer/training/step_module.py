"""The one module that an engine sees: everything trained is inside, and its forward is the whole step."""

from __future__ import annotations

from finetune_api.training import LossSpec
from torch import Tensor, nn

from finetune_trainer.data.samples import Batch
from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import Needs
from finetune_trainer.training.loss import sample_losses, timestep_weights


class StepModule(nn.Module):
    """Holds the denoiser and, when it is trained, the text encoder, so that an engine that wraps or shards a module
    has all of it."""

    def __init__(self, family: Family, needs: Needs, loss: LossSpec) -> None:
        super().__init__()
        self._family, self._loss = family, loss
        live = [family.denoiser]
        if needs.live_text_encoder:
            live += family.text_encoders
        self.parts = nn.ModuleDict({name: family.parts[name] for name in live})

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The weighted loss of a micro-batch (float32 scalar: the share of the step's loss that is its own) and the
        unweighted losses of its samples (float32 [B])."""
        family = self._family
        latents = family.latents(batch.moments, batch.posterior_noise)
        cond = batch.cond if batch.cond is not None else family.encode_text(batch.token_ids)
        noisy = family.add_noise(latents, batch.noise, batch.timesteps)
        prediction = family.predict(noisy, batch.timesteps, cond, batch.sizes)
        target = family.target(latents, batch.noise, batch.timesteps)
        losses = sample_losses(prediction, target, batch.masks)
        weights = batch.weights
        if self._loss.weighting != "None":
            weights = weights * timestep_weights(family.snr(batch.timesteps), self._loss, family.prediction_type)
        return (losses * weights).sum(), losses
