"""Stage 1: the VAE, 64 px to 16 x 16 latents. It learns from shapes and random assemblies, never from faces."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from finetune_trainer.builtin.vocabulary import IMAGE_SIZE
from torch import Tensor
from torch.nn import functional as F

from .drawing import Pixels, draw_assemblies, draw_shapes
from .faces import draw_faces
from .loop import Trainee, batches, device, half_precision, rank, run_stage, share

ASSEMBLIES = 24_000
SHAPES = 12_000
BATCH = 32
STEPS = 1_000
PEAK_RATE = 2e-3
KL_WEIGHT = 2e-4


def build_vae() -> AutoencoderKL:
    """An untrained VAE with 8 latent channels and a side of a quarter."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=8,
        # Few wide groups: on a CPU the backward pass of narrow ones costs more than the convolutions.
        norm_num_groups=2,
        mid_block_add_attention=False,
        sample_size=IMAGE_SIZE,
        scaling_factor=1.0,
    )


def to_signed(pixels: Pixels) -> Tensor:
    """uint8 [N, H, W, 3] to float [N, 3, H, W] in -1..1, channels last in memory, on the device."""
    return (torch.from_numpy(pixels).to(device()).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
        memory_format=torch.channels_last
    )


def to_pixels(signed: Tensor) -> Pixels:
    """float [N, 3, H, W] in -1..1 to uint8 [N, H, W, 3]."""
    values = ((signed.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(values.permute(0, 2, 3, 1).cpu().numpy())


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Pixels) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the latents, float [N, 8, 16, 16] each (not scaled)."""
    means, deviations = [], []
    for part in batches(len(pixels), 256):
        with half_precision():
            posterior = vae.encode(to_signed(pixels[part])).latent_dist
        means.append(posterior.mean.float())
        deviations.append(posterior.std.float())
    return torch.cat(means), torch.cat(deviations)


@torch.no_grad()
def round_trip(vae: AutoencoderKL, pixels: Pixels) -> Pixels:
    """What the VAE makes of the pictures, in fp32 without sampling. uint8 [N, H, W, 3]."""
    done = []
    for part in batches(len(pixels), 64):
        latents = vae.encode(to_signed(pixels[part])).latent_dist.mean
        done.append(to_pixels(vae.decode(latents).sample))
    return np.concatenate(done)


def psnr(one: Pixels, other: Pixels) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB."""
    error = ((one.astype(np.float64) - other.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-9))).mean())


def train_vae(work: Path, seed: int) -> AutoencoderKL:
    """Trains the VAE, keeping its checkpoint in work/vae.pt."""
    torch.manual_seed(seed)
    pictures = np.concatenate([draw_assemblies(ASSEMBLIES, seed), draw_shapes(SHAPES, seed)[0]])
    judges = draw_faces(64, seed + 1)
    vae = build_vae().to(device(), memory_format=torch.channels_last)
    trainee = Trainee.of(vae, [(list(vae.parameters()), PEAK_RATE)], ema_decay=0.998)

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 10, step, rank()])
        chosen = pictures[rng.integers(len(pictures), size=share(BATCH))]
        truth = to_signed(chosen)
        torch.manual_seed(int(rng.integers(2**31)))
        with half_precision():
            posterior = vae.encode(truth).latent_dist
            seen = vae.decode(posterior.sample()).sample
        seen = seen.float()
        divergence = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float())
        return F.l1_loss(seen, truth) + F.mse_loss(seen, truth) + KL_WEIGHT * divergence.mean()

    def watch(_: int) -> str:
        return f"faces {psnr(judges, round_trip(vae, judges)):.2f} dB"

    run_stage("VAE", trainee, STEPS, loss_of, work / "vae.pt", watch)
    normalise_latents(vae, pictures[:: max(1, len(pictures) // 2048)])
    return vae


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, pictures: Pixels) -> None:
    """Folds each latent channel's mean and deviation into the 1 x 1 convolutions beside the latents.

    After it the latents have mean 0 and deviation 1 channel by channel, as a diffusion model wants them, with a
    scaling factor of 1.
    """
    means, _ = encode(vae, pictures)
    centre = means.mean(dim=(0, 2, 3))
    scale = means.std(dim=(0, 2, 3))
    before, after = vae.quant_conv, vae.post_quant_conv
    channels = len(centre)
    after.bias += after.weight[:, :, 0, 0] @ centre
    after.weight *= scale[None, :, None, None]
    before.bias[:channels] -= centre
    before.weight[:channels] /= scale[:, None, None, None]
    before.bias[:channels] /= scale
    before.bias[channels:] -= 2 * scale.log()
