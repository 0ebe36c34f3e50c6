"""Class pictures that are missing, drawn by the whole pipeline before the training (L813-857, D860-905)."""

from __future__ import annotations

import hashlib

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from benchmarks.trainer.baseline.options import CLASS_PROMPT, Options


def draw_class_pictures(options: Options, accelerator: Accelerator) -> None:
    """With the sampler that the other side draws with, so that both compute the same number of steps."""
    options.classes.mkdir(parents=True, exist_ok=True)
    present = len(list(options.classes.iterdir()))
    if present >= options.class_images:
        return
    dtype = torch.bfloat16 if accelerator.device.type == "cuda" else torch.float32
    pipeline = DiffusionPipeline.from_pretrained(options.model, torch_dtype=dtype, safety_checker=None)
    config = pipeline.scheduler.config
    if config.get("rescale_betas_zero_snr"):
        pipeline.scheduler = DDIMScheduler.from_config(config, timestep_spacing="trailing", clip_sample=False)
    else:
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++")
    pipeline.set_progress_bar_config(disable=True)
    wanted = [{"prompt": CLASS_PROMPT, "index": index} for index in range(present, options.class_images)]
    loader = accelerator.prepare(DataLoader(wanted, batch_size=options.sample_batch))
    pipeline.to(accelerator.device)
    for batch in tqdm(loader, desc="Generating class images"):
        drawn = pipeline(batch["prompt"], num_inference_steps=options.class_steps).images
        for index, picture in zip(batch["index"], drawn, strict=True):
            name = hashlib.sha1(picture.tobytes(), usedforsecurity=False).hexdigest()
            picture.save(options.classes / f"{int(index)}-{name}.jpg")
    del pipeline
    if accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
