"""A model with the shapes of Stable Diffusion 1.5 and random weights: what a GPU takes for a step does not depend on
the weights' values, and nothing has to be downloaded."""

from __future__ import annotations

import shutil
from pathlib import Path

UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE = {
    "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def make_model(folder: Path, tokenizer: Path) -> None:
    """Writes the model to `folder` in Diffusers' layout and float32 (4.2 GB), unless it is there.

    Args:
        tokenizer: any CLIP tokenizer's folder. It may have fewer words than the text encoder's table has rows: a
            prompt is 77 tokens long whatever it says.
    """
    if (folder / "model_index.json").is_file():
        return
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = CLIPTokenizer.from_pretrained(tokenizer, model_max_length=77)
    torch.manual_seed(0)
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    whole = folder.with_name(folder.name + ".part")
    StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE),
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT, **ends)),
        tokenizer=words,
        unet=UNet2DConditionModel(**UNET),
        scheduler=PNDMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(whole)
    # killed in the middle, it must not be taken for a model
    shutil.move(whole, folder)
