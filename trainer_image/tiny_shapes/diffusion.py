"""Stage 3: UNet and text encoder, trained together on the latents of captioned shapes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions import random_caption
from .drawing import MIDDLE, Shape, draw_contents, draw_shapes
from .loop import Trainee, device, half_precision, rank, run_stage, share, wait_for_all
from .tokenizer import MAX_TOKENS
from .vae import encode

PICTURES = 10_000
BATCH = 64
STEPS = 3_200
PEAK_RATE = 1e-3
TEXT_WIDTH = 128
SNR_CAP = 5.0
NOISIEST = 0.1

Watch = Callable[[int, StableDiffusionPipeline], str]


def build_unet() -> UNet2DConditionModel:
    """An untrained UNet for 8 x 16 x 16 latents. Its first block has no attention: 256 positions cost too much."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        layers_per_block=1,
        block_out_channels=(64, 128, 160),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        # Few wide groups: see the VAE.
        norm_num_groups=4,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder of two layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's betas, stretched so that the last step is pure noise, with v-prediction.

    A small model learns a picture's overall colour at the noisiest steps. With Stable Diffusion 1's schedule those
    still show the colour, so that it would never learn to choose one.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )


class TextToNoise(nn.Module):
    """Both trained models as one module."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Predicts v, float [N, 8, 16, 16]."""
        words = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, timesteps, words).sample


@dataclass(frozen=True)
class LatentPictures:
    """The data set, encoded once: means and deviations [N, 8, 16, 16], and what each picture shows."""

    means: Tensor
    deviations: Tensor
    contents: list[Shape]

    @classmethod
    def of(cls, vae: AutoencoderKL, count: int, seed: int, cache: Path) -> "LatentPictures":
        """Draws and encodes them, or takes the latents from the cache when they are there."""
        if not cache.exists() and rank() == 0:
            means, deviations = encode(vae, draw_shapes(count, seed, MIDDLE)[0])
            torch.save((means.half(), deviations.half()), cache)
        wait_for_all()
        means, deviations = torch.load(cache, map_location=device(), weights_only=True)
        return cls(means.float(), deviations.float(), draw_contents(count, np.random.default_rng([seed, 2])))


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids, int64 [N, MAX_TOKENS], padded with the end token as Stable Diffusion's are."""
    ids = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return ids.input_ids.to(device())


def train_diffusion(
    work: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, seed: int, steps: int, watch: Watch
) -> TextToNoise:
    """Trains UNet and text encoder, keeping their checkpoint in work/diffusion.pt."""
    torch.manual_seed(seed)
    data = LatentPictures.of(vae, PICTURES, seed + 2, work / "latents.pt")
    model = TextToNoise(build_unet(), build_text_encoder(tokenizer))
    model.to(device(), memory_format=torch.channels_last)
    trainee = Trainee.of(model, [(list(model.parameters()), PEAK_RATE)], ema_decay=0.999)
    scheduler = build_scheduler()
    signal = scheduler.alphas_cumprod.to(device())

    batch = share(BATCH)

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 20, step, rank()])
        chosen = rng.integers(len(data.contents), size=batch)
        tokens = tokenize(tokenizer, [random_caption(data.contents[i], rng) for i in chosen])
        torch.manual_seed(int(rng.integers(2**31)))
        means, deviations = data.means[chosen], data.deviations[chosen]
        clean = means + deviations * torch.randn_like(means)
        noise = torch.randn_like(clean)
        # One timestep from each of as many equal stretches as pictures: every batch has seen the whole schedule.
        stretch = (torch.arange(batch, device=device()) + torch.rand(batch, device=device())) / batch
        # Four times as many from the middle as from the ends: there a blob becomes a star or a cross, which takes
        # longest to learn.
        stretch = stretch + 0.6 * torch.sin(2 * math.pi * stretch) / (2 * math.pi)
        timesteps = (stretch * len(signal)).long().clamp(max=len(signal) - 1)
        noisy = scheduler.add_noise(clean, noise, timesteps).contiguous(memory_format=torch.channels_last)
        # The plain attention: on a CPU the flash kernel's backward pass in bf16 takes three times as long.
        with half_precision(), sdpa_kernel(SDPBackend.MATH):
            predicted = model(noisy, timesteps, tokens)
        error = (predicted.float() - scheduler.get_velocity(clean, noise, timesteps)).square().mean(dim=(1, 2, 3))
        snr = signal[timesteps] / (1 - signal[timesteps])
        # Min-SNR, and a little for the noisiest steps, which it would leave out: there colours are chosen, which is
        # learned soon; their large errors in what cannot be known yet must not drown those in a shape's corners.
        weight = (snr.clamp(max=SNR_CAP) + NOISIEST) / (snr + 1)
        return (error * weight).mean()

    def look(step: int) -> str:
        return watch(step, pipeline(vae, model.unet, model.text_encoder, tokenizer))

    run_stage("UNet and text encoder", trainee, steps, loss_of, work / "diffusion.pt", look)
    return model


def pipeline(
    vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """The parts as Diffusers' pipeline, without a safety checker."""
    pipe = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """A finished model, in fp32 on the CPU."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(
    pipe: StableDiffusionPipeline, prompts: list[str], seed: int, steps: int = 20, guidance: float = 3.0
) -> np.ndarray:
    """Pictures for the prompts; picture i depends on (seed, i, prompt) alone. uint8 [N, 64, 64, 3]."""
    done = []
    for start in range(0, len(prompts), 64):
        part = prompts[start : start + 64]
        generators = [torch.Generator().manual_seed(seed * 100_003 + start + i) for i in range(len(part))]
        images = pipe(part, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np")
        done.append((images.images * 255).round().astype(np.uint8))
    return np.concatenate(done)
