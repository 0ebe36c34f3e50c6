"""SDXL: two CLIP text encoders read one layer before their last, a UNet that is told the picture's size
(https://arxiv.org/abs/2307.01952)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import SchedulerMixin, StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from finetune_trainer.families.base import Cond
from finetune_trainer.families.latent_diffusion import LatentDiffusion
from finetune_trainer.families.loading import Loaded


class StableDiffusionXL(LatentDiffusion):
    """Implements Family."""

    name = "stable-diffusion-xl"
    text_encoder_classes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}  # noqa: RUF012 - never changed
    layers_unread = 1
    final_norm = False

    def __init__(self, folder: Path, device: torch.device, loaded: Loaded, clip_skip: int = 0) -> None:
        super().__init__(folder, device, loaded, clip_skip)
        index = json.loads((folder / "model_index.json").read_text())
        self._zeros_for_empty = bool(index.get("force_zeros_for_empty_prompt", True))
        self.sampler["force_zeros_for_empty_prompt"] = self._zeros_for_empty

    def encode_text(self, token_ids: Tensor) -> Cond:
        """Hidden states of both encoders side by side, and the pooled text of the second.

        An empty prompt is zeros where the pipeline says so. The base model learned what to draw without a prompt
        from zeros, so that they stand for one in training as in drawing.
        """
        cond = super().encode_text(token_ids)
        assert cond.pooled is not None
        if not self._zeros_for_empty:
            return cond
        # an end right after the begin
        empty = (token_ids[:, 0, 1] == self._tokenizers["text_encoder"].eos_token_id).to(self.device)
        return Cond(cond.embeddings.masked_fill(empty[:, None, None], 0), cond.pooled.masked_fill(empty[:, None], 0))

    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Cond, sizes: Tensor) -> Tensor:
        prediction: Tensor = self._unet(
            noisy,
            timesteps,
            encoder_hidden_states=cond.embeddings,
            added_cond_kwargs={"text_embeds": cond.pooled, "time_ids": sizes},
            return_dict=False,
        )[0]
        return prediction

    def _sizes_of(self, noise: Tensor) -> dict[str, object]:
        size = tuple(side * self.pixels_per_latent for side in noise.shape[-2:])
        return {"original_size": size, "target_size": size}

    def _make_pipeline(self, scheduler: SchedulerMixin) -> StableDiffusionXLPipeline:
        return StableDiffusionXLPipeline(
            vae=self._vae,
            unet=self._unet,
            scheduler=scheduler,
            **{part: self.parts[part] for part in self.text_encoders},
            tokenizer=self._tokenizers["text_encoder"],
            tokenizer_2=self._tokenizers["text_encoder_2"],
            force_zeros_for_empty_prompt=self._zeros_for_empty,
            add_watermarker=False,
        )
