"""train_dreambooth.py with prior preservation: all weights of the UNet, and of the text encoder where asked for,
in float32 under autocast; under DeepSpeed in bf16, with float32 masters."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.trainer.baseline import scaffold
from benchmarks.trainer.baseline.class_pictures import draw_class_pictures
from benchmarks.trainer.baseline.options import CLASS_PROMPT, PROMPT, Options
from benchmarks.trainer.baseline.pictures import DreamBoothPictures, collate
from benchmarks.trainer.watch import Watch

RATE = 5e-6


class Both(nn.Module):
    """UNet and text encoder as one module, which is all that accelerate can give to DeepSpeed."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        states = self.text_encoder(ids, return_dict=False)[0]
        prediction: Tensor = self.unet(noisy, timesteps, states, class_labels=None, return_dict=False)[0]
        return prediction


def train(options: Options, watch: Watch) -> int:
    """Draws class pictures where they are missing, trains, and writes the whole pipeline to `options.output`. How many
    steps changed nothing."""
    accelerator = scaffold.make_accelerator(options)
    draw_class_pictures(options, accelerator)
    models = scaffold.Models(options)
    dtype = scaffold.weight_dtype(accelerator)
    trained = [models.unet, models.text_encoder] if options.text_encoder else [models.unet]
    for part in (models.vae, models.text_encoder):  # D983-987, D1156-1161
        if part not in trained:
            part.requires_grad_(False)
            part.to(accelerator.device, dtype=dtype)
    if options.small:  # D1002-1005
        models.unet.enable_gradient_checkpointing()
        if options.text_encoder:
            models.text_encoder.gradient_checkpointing_enable()
    # text that is computed in advance cannot be trained (D605)
    in_advance = options.tuned and not options.text_encoder
    parameters = list(chain.from_iterable(part.parameters() for part in trained))
    optimizer = scaffold.make_optimizer(parameters, RATE, options.tuned)
    prompts = (PROMPT, CLASS_PROMPT) if in_advance else ()
    texts = [scaffold.encoded(models, prompt, accelerator.device) for prompt in prompts]
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
    loader = scaffold.make_loader(options, pictures, collate)
    rates = scaffold.constant_rate(optimizer, options.steps)
    if options.small and options.tuned and options.text_encoder:
        trained = [Both(*trained)]
    *trained, optimizer, loader, rates = accelerator.prepare(*trained, optimizer, loader, rates)  # D1139-1146
    accelerator.register_save_state_pre_hook(in_diffusers_layout)
    for part in trained:
        part.train()
    as_one = isinstance(accelerator.unwrap_model(trained[0]), Both)

    def predict(noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        prediction: Tensor
        if as_one:
            prediction = trained[0](noisy, timesteps, ids)
        else:
            encoder = trained[-1] if options.text_encoder else models.text_encoder
            states = ids if in_advance else encoder(ids, return_dict=False)[0]
            prediction = trained[0](noisy, timesteps, states, class_labels=None, return_dict=False)[0]
        return prediction

    def step(batch: dict[str, Tensor]) -> Tensor:
        noisy, timesteps, target = scaffold.noisy_latents(models, batch["pixels"].to(dtype=dtype))
        loss = scaffold.loss_of(predict(noisy, timesteps, batch["ids"]), target, prior=True)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, scaffold.MAX_GRAD_NORM)
        optimizer.step()
        rates.step()
        # `--set_grads_to_none` is off by default (D517, D1344)
        optimizer.zero_grad(set_to_none=options.tuned)
        return loss.detach()

    skipped = scaffold.run_steps(options, accelerator, trained[0], loader, rates, watch, step)
    StableDiffusionPipeline.from_pretrained(  # D1405-1432
        options.model, **parts_of(accelerator, trained), torch_dtype=torch.float32, safety_checker=None
    ).save_pretrained(options.output)
    return skipped


def parts_of(accelerator: Accelerator, trained: list[nn.Module]) -> dict[str, nn.Module]:
    """What was trained, by its name in a pipeline."""
    bare = [accelerator.unwrap_model(part) for part in trained]
    if isinstance(bare[0], Both):
        bare = [bare[0].unet, bare[0].text_encoder]
    return dict(zip(("unet", "text_encoder"), bare, strict=False))


def in_diffusers_layout(models: list[nn.Module], weights: list[object], folder: str) -> None:
    """D954-961."""
    for model in models:
        model.save_pretrained(Path(folder) / ("unet" if isinstance(model, UNet2DConditionModel) else "text_encoder"))
        weights.pop()
