"""Stable Diffusion 1.x and 2.x: one CLIP text encoder."""

from __future__ import annotations

from diffusers import SchedulerMixin, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextModel

from finetune_trainer.families.base import Cond
from finetune_trainer.families.latent_diffusion import LatentDiffusion


class StableDiffusion(LatentDiffusion):
    """Implements Family."""

    name = "stable-diffusion"
    text_encoder_classes = {"text_encoder": CLIPTextModel}  # noqa: RUF012 - never changed

    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Cond, sizes: Tensor) -> Tensor:
        prediction: Tensor = self._unet(noisy, timesteps, encoder_hidden_states=cond.embeddings, return_dict=False)[0]
        return prediction

    def _make_pipeline(self, scheduler: SchedulerMixin) -> StableDiffusionPipeline:
        return StableDiffusionPipeline(
            vae=self._vae,
            text_encoder=self.parts["text_encoder"],
            tokenizer=self._tokenizers["text_encoder"],
            unet=self._unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
