"""An SDXL of some ten thousand random weights: 16 px pictures, 8 × 8 latents, two text encoders of different widths.
Like the real one it pads for the second encoder with "!", and that one's configuration has the end-of-text id 2."""

from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from support.tiny_sd import NOISE, tiny_text_config, tiny_tokenizer, tiny_vae

POOLED, TIME_WIDTH = 20, 8
WIDTHS = {"text_encoder": 24, "text_encoder_2": 32}


def build_tiny_sdxl(
    folder: Path, seed: int = 0, variant: str | None = None, zeros_for_empty: bool = True, **scheduler: object
) -> Path:
    """Writes the model into `folder`; `scheduler` overrides the noise schedule's configuration."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=sum(WIDTHS.values()),
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=POOLED + 6 * TIME_WIDTH,
    )
    first = tiny_text_config(WIDTHS["text_encoder"], layers=3)
    second = tiny_text_config(
        WIDTHS["text_encoder_2"], layers=3, heads=4, hidden_act="gelu", projection_dim=POOLED, eos_token_id=2
    )
    pipeline = StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(first),
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(pad="!"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**({key: NOISE[key] for key in NOISE if key != "clip_sample"} | scheduler)),
        force_zeros_for_empty_prompt=zeros_for_empty,
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True, variant=variant)
    return folder
