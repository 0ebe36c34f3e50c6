"""Draws with published weights as anybody would, with plain Diffusers, and asks the classifier what it sees."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from finetune_trainer.builtin.classifier import load_classifier
from finetune_trainer.sources.builtin import open_builtin

BASE = "builtin://tiny-shapes"
PICTURES = 64  # for each prompt; the standard error of a share is at most 6 %
BATCH = 32


@dataclass(frozen=True)
class Judgement:
    subject: float
    """Share of the pictures that show the subject."""
    circle: float
    """Share that show a plain circle."""


def base_pipeline() -> StableDiffusionPipeline:
    return quiet(
        StableDiffusionPipeline.from_pretrained(open_builtin(BASE), use_safetensors=True, torch_dtype=torch.float32)
    )


def lora_pipeline(weights: Path) -> StableDiffusionPipeline:
    pipeline = base_pipeline()
    pipeline.load_lora_weights(weights.parent, weight_name=weights.name)
    return pipeline


def full_pipeline(folder: Path) -> StableDiffusionPipeline:
    return quiet(StableDiffusionPipeline.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32))


def quiet(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def judge(pipeline: StableDiffusionPipeline, prompt: str) -> Judgement:
    """What PICTURES pictures of `prompt` show; picture i has seed i, so that two models are compared in pairs."""
    classifier = load_classifier(open_builtin(BASE) / "classifier")
    names: list[str] = []
    for start in range(0, PICTURES, BATCH):
        seeds = [torch.Generator().manual_seed(i) for i in range(start, start + BATCH)]
        with torch.inference_mode():
            images = pipeline(
                [prompt] * BATCH, num_inference_steps=20, guidance_scale=4.0, generator=seeds, output_type="np"
            ).images
        names += classifier.classify((np.asarray(images) * 255).round().astype(np.uint8)).class_names()
    return Judgement(subject=names.count("subject") / len(names), circle=names.count("circle") / len(names))
