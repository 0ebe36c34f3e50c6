"""train_dreambooth_lora.py without prior preservation: LoRA on the attention of the UNet."""

from __future__ import annotations

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from benchmarks.trainer.baseline import scaffold
from benchmarks.trainer.baseline.options import CLASS_PROMPT, PROMPT, Options
from benchmarks.trainer.baseline.pictures import DreamBoothPictures, collate
from benchmarks.trainer.watch import Watch

RATE = 1e-4


def train(options: Options, watch: Watch) -> int:
    """Trains, and writes pytorch_lora_weights.safetensors to `options.output`. How many steps changed nothing."""
    accelerator = scaffold.make_accelerator(options)
    models = scaffold.Models(options)
    dtype = scaffold.weight_dtype(accelerator)
    for part in (models.unet, models.vae, models.text_encoder):  # L901-919
        part.requires_grad_(False)
        part.to(accelerator.device, dtype=dtype)
    unet = models.unet
    unet.add_adapter(  # L940-947
        LoraConfig(
            r=options.rank,
            lora_alpha=options.rank,
            init_lora_weights="gaussian",
            target_modules=["to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj"],
        )
    )
    parameters = [value for value in unet.parameters() if value.requires_grad]
    optimizer = scaffold.make_optimizer(parameters, RATE, options.tuned)
    text = scaffold.encoded(models, PROMPT, accelerator.device) if options.tuned else None
    pictures = DreamBoothPictures(
        options.pictures, models.tokenizer, PROMPT, options.resolution, text, None, CLASS_PROMPT, None
    )
    loader = scaffold.make_loader(options, pictures, collate)
    rates = scaffold.constant_rate(optimizer, options.steps)
    unet, optimizer, loader, rates = accelerator.prepare(unet, optimizer, loader, rates)
    accelerator.register_save_state_pre_hook(only_adapters)
    unet.train()

    def step(batch: dict[str, Tensor]) -> Tensor:
        noisy, timesteps, target = scaffold.noisy_latents(models, batch["pixels"].to(dtype=dtype))
        states = batch["ids"] if options.tuned else models.text_encoder(batch["ids"], return_dict=False)[0]
        prediction = unet(noisy, timesteps, states, return_dict=False)[0]
        loss = scaffold.loss_of(prediction, target, prior=False)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, scaffold.MAX_GRAD_NORM)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        return loss.detach()

    skipped = scaffold.run_steps(options, accelerator, unet, loader, rates, watch, step)
    whole = accelerator.unwrap_model(unet).to(torch.float32)  # L1405-1423
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(whole))
    StableDiffusionLoraLoaderMixin.save_lora_weights(save_directory=options.output, unet_lora_layers=layers)
    return skipped


def only_adapters(models: list[nn.Module], weights: list[object], folder: str) -> None:
    """A checkpoint holds the adapter and not the base model (L966-990)."""
    for model in models:
        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
        weights.pop()
        StableDiffusionLoraLoaderMixin.save_lora_weights(folder, unet_lora_layers=layers)
