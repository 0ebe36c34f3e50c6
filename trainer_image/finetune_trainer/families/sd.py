"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, a VAE; epsilon or v-prediction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from finetune_trainer.errors import DataError
from finetune_trainer.families.base import Cond, Moments
from finetune_trainer.families.folder import digests_of, joint_digest, variant_of
from finetune_trainer.families.text import TextReader

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
FOLDERS = (*WEIGHTS, "tokenizer", "scheduler")
PREDICTION_TYPES = ("epsilon", "v_prediction")


class StableDiffusion:
    """Implements Family. `load` is the way to make one."""

    name = "stable-diffusion"
    denoiser = "unet"
    text_encoders = ("text_encoder",)

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        parts: Mapping[str, nn.Module],
        tokenizer: CLIPTokenizer,
        scheduler: SchedulerMixin,
        digests: Mapping[str, str],
        clip_skip: int = 0,
    ) -> None:
        self.folder, self.device, self.parts, self.digests = folder, device, parts, digests
        self.digest = joint_digest(digests)
        self._clip_skip = clip_skip
        self._tokenizer, self._own_scheduler = tokenizer, scheduler
        self._noise = DDPMScheduler.from_config(scheduler.config)
        prediction = self._noise.config.prediction_type
        if prediction not in PREDICTION_TYPES:
            raise DataError(
                f"baseModel: scheduler/scheduler_config.json says prediction_type {prediction}; "
                f"these can be trained: {', '.join(PREDICTION_TYPES)}"
            )
        self.prediction_type = str(prediction)
        self._noise.alphas_cumprod = self._noise.alphas_cumprod.to(device)
        self._unet, self._vae, self._text_encoder = parts["unet"], parts["vae"], parts["text_encoder"]
        self._text = TextReader(tokenizer, parts["text_encoder"])
        self.timesteps = int(self._noise.config.num_train_timesteps)
        self.pixels_per_latent = 2 ** (len(self._vae.config.block_out_channels) - 1)
        self.latent_channels = int(self._vae.config.latent_channels)
        sampler = drawing_scheduler(dict(self._noise.config))
        self.sampler = {
            "name": type(sampler).__name__,
            "dtype": "float32" if device.type == "cpu" else "bfloat16",
            **{key: value for key, value in sampler.config.items() if not key.startswith("_")},
        }
        self.resolution = int(self._unet.config.sample_size) * self.pixels_per_latent

    @classmethod
    def load(cls, folder: Path, device: torch.device, clip_skip: int = 0) -> StableDiffusion:
        """Reads every part from safetensors and JSON; nothing in the folder can run code.

        Raises:
            DataError: a part is missing or cannot be read.
        """
        for name in FOLDERS:
            if not (folder / name).is_dir():
                raise DataError(f"baseModel: {folder.name} has no {name}/; it must have {', '.join(FOLDERS)}")
        variant = variant_of(folder, WEIGHTS)
        loaded: dict[str, nn.Module] = {}
        for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
            with _naming(folder, name):
                loaded[name], info = kind.from_pretrained(
                    folder / name,
                    torch_dtype=torch.float32,
                    use_safetensors=True,
                    local_files_only=True,
                    variant=variant,
                    output_loading_info=True,
                )
                _check_whole(info["missing_keys"])
        with _naming(folder, "text_encoder"):
            file = WEIGHTS["text_encoder"].replace("model", f"model.{variant}" if variant else "model", 1)
            loaded["text_encoder"] = _text_encoder(folder / "text_encoder", file)
        with _naming(folder, "tokenizer"):
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        with _naming(folder, "scheduler"):
            scheduler = _scheduler(folder / "scheduler")
        for part in loaded.values():
            # channels last is how CPU and GPU convolutions are fastest; it changes no value
            part.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
        return cls(folder, device, loaded, tokenizer, scheduler, digests_of(folder, FOLDERS), clip_skip)

    def tokenize(self, prompts: Sequence[str], chunks: int = 1) -> Tensor:
        return self._text.tokenize(prompts, chunks).unsqueeze(1)

    def chunks_of(self, prompt: str) -> int:
        return self._text.chunks_of(prompt)

    def encode_text(self, token_ids: Tensor) -> Cond:
        return Cond(self._text.encode(token_ids[:, 0].to(self.device), self._clip_skip).hidden)

    def word_known(self, word: str) -> bool:
        return self._text.word_known(word)

    def embed(self, text: str) -> dict[str, Tensor]:
        return {"text_encoder": self._text.embed(text)}

    def vocabulary(self, part: str) -> Tensor:
        return self._text.vocabulary

    def add_word(self, word: str, vectors: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
        return {"text_encoder": self._text.add_word(word, vectors["text_encoder"])}

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Moments:
        posterior = self._vae.encode(pixels.to(self.device)).latent_dist
        return Moments(posterior.mean.float(), posterior.logvar.float())

    def latents(self, moments: Moments, posterior_noise: Tensor) -> Tensor:
        sample = moments.mean + torch.exp(0.5 * moments.logvar) * posterior_noise
        return sample * self._vae.config.scaling_factor

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self._noise.add_noise(latents, noise, timesteps)

    def snr(self, timesteps: Tensor) -> Tensor:
        signal = self._noise.alphas_cumprod[timesteps]
        return signal / (1 - signal)

    def predict(self, noisy: Tensor, timesteps: Tensor, cond: Cond, sizes: Tensor) -> Tensor:
        prediction: Tensor = self._unet(noisy, timesteps, encoder_hidden_states=cond.embeddings, return_dict=False)[0]
        return prediction

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self._noise.config.prediction_type == "epsilon":
            return noise
        return self._noise.get_velocity(latents, noise, timesteps)

    def pipeline(self) -> StableDiffusionPipeline:
        return self._pipeline(self._own_scheduler)

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        noise: Tensor,
        steps: int,
        guidance: float,
    ) -> list[Image.Image]:
        pipeline = self._pipeline(drawing_scheduler(dict(self._noise.config)))
        zero_snr = bool(self._noise.config.rescale_betas_zero_snr)
        chunks = max(self.chunks_of(prompt) for prompt in {*prompts, *negative_prompts})
        training = self._unet.training
        self._unet.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu"):
            latents = pipeline(
                prompt_embeds=self.encode_text(self.tokenize(prompts, chunks)).embeddings,
                negative_prompt_embeds=self.encode_text(self.tokenize(negative_prompts, chunks)).embeddings,
                latents=noise.to(self.device),
                num_inference_steps=steps,
                guidance_scale=guidance,
                # keeps zero-terminal-SNR models from overexposing (https://arxiv.org/abs/2305.08891)
                guidance_rescale=0.7 if zero_snr else 0.0,
                output_type="latent",
            ).images
        self._unet.train(training)
        pixels = self._vae.decode(latents.float() / self._vae.config.scaling_factor, return_dict=False)[0]
        pictures: list[Image.Image] = pipeline.image_processor.postprocess(pixels, output_type="pil")
        return pictures

    def _pipeline(self, scheduler: SchedulerMixin) -> StableDiffusionPipeline:
        pipeline = StableDiffusionPipeline(
            vae=self._vae,
            text_encoder=self._text_encoder,
            tokenizer=self._tokenizer,
            unet=self._unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def drawing_scheduler(config: Mapping[str, Any]) -> SchedulerMixin:
    """A sampler without noise of its own for the noise schedule in `config`.

    DPM-Solver++ needs the fewest steps; with zero terminal SNR its first step would divide by zero, and there
    DDIM with trailing timesteps is the right one (https://arxiv.org/abs/2305.08891).
    """
    if config.get("rescale_betas_zero_snr"):
        return DDIMScheduler.from_config(config, timestep_spacing="trailing", clip_sample=False)
    return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", use_karras_sigmas=False)


def _text_encoder(folder: Path, file: str) -> CLIPTextModel:
    """Read by hand: transformers 5.6 and later write the keys without `text_model.`, and the version in use here
    would take such a file for an empty one and go on with random weights."""
    prefix = "text_model."
    encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(folder, local_files_only=True))
    state = {key if key.startswith(prefix) else prefix + key: value for key, value in load_file(folder / file).items()}
    _check_whole(encoder.load_state_dict(state, strict=False).missing_keys)
    return encoder.float()


def _check_whole(missing: Sequence[str]) -> None:
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")


def _scheduler(folder: Path) -> SchedulerMixin:
    name = json.loads((folder / "scheduler_config.json").read_text()).get("_class_name", "DDPMScheduler")
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ValueError(f"{name} is not a scheduler of Diffusers")
    return kind.from_pretrained(folder, local_files_only=True)


class _naming:
    """Turns whatever a library raises about a broken part into a DataError that names the part."""

    def __init__(self, folder: Path, part: str) -> None:
        self._where = f"baseModel: {part}/ of {folder.name} cannot be read"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
            raise DataError(f"{self._where}: {reason}; fetch it anew or use another model") from error
