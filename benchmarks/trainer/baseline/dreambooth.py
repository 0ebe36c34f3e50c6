"""train_dreambooth.py with prior preservation: all weights of the UNet, in float32 under autocast."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.trainer.baseline import scaffold
from benchmarks.trainer.baseline.class_pictures import draw_class_pictures
from benchmarks.trainer.baseline.lora import encoded
from benchmarks.trainer.baseline.options import CLASS_PROMPT, PROMPT, Options
from benchmarks.trainer.baseline.pictures import DreamBoothPictures, collate
from benchmarks.trainer.watch import Watch

RATE = 5e-6


def train(options: Options, watch: Watch) -> None:
    """Draws class pictures where they are missing, trains, and writes the whole pipeline to `options.output`."""
    accelerator = scaffold.make_accelerator(options)
    draw_class_pictures(options, accelerator)
    models = scaffold.Models(options)
    dtype = scaffold.weight_dtype(accelerator)
    for part in (models.vae, models.text_encoder):  # D983-987, D1156-1161
        part.requires_grad_(False)
        part.to(accelerator.device, dtype=dtype)
    optimizer = scaffold.make_optimizer(models.unet.parameters(), RATE, options.tuned)
    texts = [encoded(models, prompt, accelerator.device) for prompt in (PROMPT, CLASS_PROMPT)] if options.tuned else []
    text, class_text = texts or (None, None)
    pictures = DreamBoothPictures(
        options.pictures,
        models.tokenizer,
        PROMPT,
        options.resolution,
        text,
        options.classes,
        CLASS_PROMPT,
        class_text,
    )
    loader = DataLoader(
        pictures,
        batch_size=options.batch,
        shuffle=True,
        collate_fn=collate,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )
    rates = scaffold.constant_rate(optimizer, options.steps)
    unet, optimizer, loader, rates = accelerator.prepare(models.unet, optimizer, loader, rates)
    accelerator.register_save_state_pre_hook(in_diffusers_layout)
    unet.train()

    def step(batch: dict[str, Tensor]) -> Tensor:
        noisy, timesteps, target = scaffold.noisy_latents(models, batch["pixels"].to(dtype=dtype))
        states = batch["ids"] if options.tuned else models.text_encoder(batch["ids"], return_dict=False)[0]
        prediction = unet(noisy, timesteps, states, class_labels=None, return_dict=False)[0]
        loss = scaffold.loss_of(prediction, target, prior=True)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(unet.parameters(), scaffold.MAX_GRAD_NORM)
        optimizer.step()
        rates.step()
        # `--set_grads_to_none` is off by default (D517, D1344)
        optimizer.zero_grad(set_to_none=options.tuned)
        return loss.detach()

    scaffold.run_steps(options, accelerator, unet, loader, rates, watch, step)
    pipeline = StableDiffusionPipeline.from_pretrained(  # D1405-1432
        options.model, unet=accelerator.unwrap_model(unet), torch_dtype=torch.float32, safety_checker=None
    )
    pipeline.save_pretrained(options.output)


def in_diffusers_layout(models: list[nn.Module], weights: list[object], folder: str) -> None:
    """D954-961."""
    for model in models:
        model.save_pretrained(Path(folder) / "unet")
        weights.pop()
