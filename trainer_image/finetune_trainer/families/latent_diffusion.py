"""What Stable Diffusion and SDXL have in common: CLIP text encoders, a UNet in the latent space of a VAE, and noise
that keeps the variance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor, nn

from finetune_trainer.errors import ConfigurationError, DataError
from finetune_trainer.families.base import Cond, Moments
from finetune_trainer.families.folder import joint_digest
from finetune_trainer.families.loading import Loaded, TextEncoderClass, load_parts
from finetune_trainer.families.noise import NoiseSchedule
from finetune_trainer.families.text import TextReader


class LatentDiffusion(ABC):
    """Implements Family but for `predict`, `_make_pipeline` and what a kind of model adds. `load` makes one."""

    name: ClassVar[str]
    text_encoder_classes: ClassVar[Mapping[str, TextEncoderClass]]
    layers_unread: ClassVar[int] = 0
    """Layers at the end of the text encoders that the denoiser was never shown; clip skip comes on top."""
    final_norm: ClassVar[bool] = True
    """Whether the text encoder's last layer norm is applied to the layer that is read."""
    denoiser = "unet"

    def __init__(self, folder: Path, device: torch.device, loaded: Loaded, clip_skip: int = 0) -> None:
        self.folder, self.device, self.parts, self.digests = folder, device, loaded.parts, loaded.digests
        self.digest = joint_digest(loaded.digests)
        self.text_encoders = tuple(self.text_encoder_classes)
        self._noise = NoiseSchedule(loaded.scheduler, device)
        self._own_scheduler, self._tokenizers = loaded.scheduler, loaded.tokenizers
        self._unet, self._vae = self.parts["unet"], self.parts["vae"]
        if self._vae.config.latents_mean is not None:
            raise DataError(
                "baseModel: vae/config.json has latents_mean; models with shifted latents cannot be fine-tuned: use "
                "another model"
            )
        encoders = {part: self.parts[part] for part in self.text_encoders}
        _check_clip_skip(encoders, clip_skip, self.layers_unread)
        length = min(
            min(self._tokenizers[part].model_max_length, encoder.config.max_position_embeddings)
            for part, encoder in encoders.items()
        )
        self._readers = {
            part: TextReader(self._tokenizers[part], encoder, length, clip_skip + self.layers_unread, self.final_norm)
            for part, encoder in encoders.items()
        }
        self.prediction_type, self.timesteps = self._noise.prediction_type, self._noise.timesteps
        self.pixels_per_latent = 2 ** (len(self._vae.config.block_out_channels) - 1)
        self.latent_channels = int(self._vae.config.latent_channels)
        self.resolution = int(self._unet.config.sample_size) * self.pixels_per_latent
        sampler = self._noise.sampler()
        self.sampler: dict[str, object] = {
            "name": type(sampler).__name__,
            "dtype": "float32" if device.type == "cpu" else "bfloat16",
            **{key: value for key, value in sampler.config.items() if not key.startswith("_")},
        }
        if clip_skip:
            self.sampler["clip_skip"] = clip_skip

    @classmethod
    def load(cls, folder: Path, device: torch.device, clip_skip: int = 0) -> Self:
        """Reads every part from safetensors and JSON; nothing in the folder can run code.

        Raises:
            DataError: a part is missing or cannot be read, or is of a kind that cannot be trained.
            ConfigurationError: `clip_skip` leaves no layer of a text encoder.
        """
        return cls(folder, device, load_parts(folder, device, cls.text_encoder_classes), clip_skip)

    def tokenize(self, prompts: Sequence[str], chunks: int = 1) -> Tensor:
        return torch.stack([reader.tokenize(prompts, chunks) for reader in self._readers.values()], dim=1)

    def chunks_of(self, prompt: str) -> int:
        return max(reader.chunks_of(prompt) for reader in self._readers.values())

    def encode_text(self, token_ids: Tensor) -> Cond:
        ids = token_ids.to(self.device)
        read = [reader.encode(ids[:, index]) for index, reader in enumerate(self._readers.values())]
        return Cond(torch.cat([each.hidden for each in read], dim=-1), read[-1].pooled)

    def word_known(self, word: str) -> bool:
        return all(reader.word_known(word) for reader in self._readers.values())

    def embed(self, text: str) -> dict[str, Tensor]:
        return {part: reader.embed(text) for part, reader in self._readers.items()}

    def vocabulary(self, part: str) -> Tensor:
        return self._readers[part].vocabulary

    def add_word(self, word: str, vectors: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
        for part, reader in self._readers.items():
            reader.check_word(word, part, vectors)
        return {part: reader.add_word(word, vectors[part]) for part, reader in self._readers.items()}

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Moments:
        with self._full_precision():
            posterior = self._vae.encode(pixels.to(self.device)).latent_dist
        return Moments(posterior.mean.float(), posterior.logvar.float())

    def latents(self, moments: Moments, posterior_noise: Tensor) -> Tensor:
        sample = moments.mean + torch.exp(0.5 * moments.logvar) * posterior_noise
        scaled: Tensor = sample * self._vae.config.scaling_factor
        return scaled

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self._noise.add(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self._noise.target(latents, noise, timesteps)

    @abstractmethod
    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Cond, sizes: Tensor) -> Tensor:
        """As Family.predict."""

    def snr(self, timesteps: Tensor) -> Tensor:
        return self._noise.snr(timesteps)

    def pipeline(self) -> DiffusionPipeline:
        return self._make_pipeline(self._own_scheduler)

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        noise: Tensor,
        steps: int,
        guidance: float,
    ) -> list[Image.Image]:
        # rows of as many windows go together, and no others: a window more, and be it empty, changes the picture
        pairs = list(zip(prompts, negative_prompts, strict=True))
        chunks = [max(map(self.chunks_of, pair)) for pair in pairs]
        latents = torch.empty_like(noise, device=self.device, dtype=torch.float32)
        for count in sorted(set(chunks)):
            rows = [row for row, own in enumerate(chunks) if own == count]
            given = [prompts[row] for row in rows], [negative_prompts[row] for row in rows]
            latents[rows] = self._denoised(*given, count, noise[rows], steps, guidance)
        return [self._picture(row) for row in latents.split(1)]

    def _denoised(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        chunks: int,
        noise: Tensor,
        steps: int,
        guidance: float,
    ) -> Tensor:
        """Latents of pictures, float32, shape of `noise`."""
        pipeline = self._make_pipeline(self._noise.sampler())
        pipeline.set_progress_bar_config(disable=True)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu")
        with _evaluating(self.parts.values()), autocast:
            latents: Tensor = pipeline(
                **self._conditioning(prompts, negative_prompts, chunks),
                **self._sizes_of(noise),
                latents=noise.to(self.device),
                num_inference_steps=steps,
                guidance_scale=guidance,
                # keeps zero-terminal-SNR models from overexposing (https://arxiv.org/abs/2305.08891)
                guidance_rescale=0.7 if self._noise.zero_terminal_snr else 0.0,
                output_type="latent",
            ).images
        return latents.float()

    def _picture(self, latents: Tensor) -> Image.Image:
        """The picture of one row: decoding in float32 takes more memory than all else, several GB at 1024 pixels, and
        must not grow with the rows."""
        with self._full_precision():
            pixels = self._vae.decode(latents / self._vae.config.scaling_factor, return_dict=False)[0]
        picture: Image.Image = VaeImageProcessor().postprocess(pixels, output_type="pil")[0]
        return picture

    def _conditioning(
        self, prompts: Sequence[str], negative_prompts: Sequence[str], chunks: int
    ) -> dict[str, Tensor | None]:
        """What a pipeline takes in place of prompts."""
        texts = {"": self.encode_text(self.tokenize(prompts, chunks))}
        texts["negative_"] = self.encode_text(self.tokenize(negative_prompts, chunks))
        given = {f"{sign}prompt_embeds": text.embeddings for sign, text in texts.items()}
        pooled = {f"{sign}pooled_prompt_embeds": text.pooled for sign, text in texts.items() if text.pooled is not None}
        return {**given, **pooled}

    def _sizes_of(self, noise: Tensor) -> dict[str, object]:
        """What a pipeline must be told of the pictures' size beside the noise [B, channels, height, width]."""
        return {}

    @abstractmethod
    def _make_pipeline(self, scheduler: SchedulerMixin) -> DiffusionPipeline:
        """The model as Diffusers has it, sharing the live parts."""

    def _full_precision(self) -> torch.autocast:
        """The VAE computes in float32 whatever surrounds it: in half precision SDXL's overflows to NaN."""
        return torch.autocast(self.device.type, enabled=False)


def _check_clip_skip(encoders: Mapping[str, nn.Module], clip_skip: int, unread: int) -> None:
    for part, encoder in encoders.items():
        most = encoder.config.num_hidden_layers - unread - 1
        if clip_skip > most:
            raise ConfigurationError(
                f"training.clipSkip is {clip_skip}, but {part} of this model has {encoder.config.num_hidden_layers} "
                f"layers; use at most {most}"
            )


@contextmanager
def _evaluating(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Without dropout; afterwards as before."""
    training = [part for part in parts if part.training]
    for part in training:
        part.eval()
    try:
        yield
    finally:
        for part in training:
            part.train()
