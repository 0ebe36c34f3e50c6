"""A Stable Diffusion of a few thousand random weights: 16 px pictures, 8 × 8 latents. It draws nothing sensible, and
that is enough to compare losses and files exactly."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

RESOLUTION = 16
TOKENS = 24
"""Of a window, begin and end included."""
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
NOISE: dict[str, object] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "steps_offset": 1,
}


def tiny_vae() -> AutoencoderKL:
    """Half the side in latents."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        scaling_factor=0.5,
    )


def tiny_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """One token a letter."""
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(VOCABULARY)},
        merges=[],
        model_max_length=TOKENS,
        pad_token=pad,
    )


def tiny_text_config(width: int = 24, layers: int = 2, heads: int = 3, **more: object) -> CLIPTextConfig:
    settings: dict[str, object] = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": TOKENS,
        "bos_token_id": len(VOCABULARY) - 2,
        "eos_token_id": len(VOCABULARY) - 1,
        "pad_token_id": len(VOCABULARY) - 1,
    }
    return CLIPTextConfig(**(settings | more))


def build_tiny_sd(
    folder: Path,
    seed: int = 0,
    variant: str | None = None,
    channels: tuple[int, int] = (16, 32),
    **scheduler: object,
) -> Path:
    """Writes the model into `folder`; `scheduler` overrides the noise schedule's configuration."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = tiny_vae()
    text_encoder = CLIPTextModel(tiny_text_config())
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tiny_tokenizer(),
        unet=unet,
        scheduler=DDPMScheduler(**(NOISE | scheduler)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True, variant=variant)
    return folder
