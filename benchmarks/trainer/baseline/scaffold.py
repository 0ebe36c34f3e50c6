"""What the three scripts have in common: accelerate around the training, models in Diffusers' layout, the loop over a
data loader that begins anew when it is through, checkpoints, and the scripts' own progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from benchmarks.trainer.baseline.options import CHECKPOINTING_STEPS, Options
from benchmarks.trainer.watch import Watch

MAX_GRAD_NORM = 1.0
"""`--max_grad_norm` by default (L435, D434)."""


def make_accelerator(options: Options) -> Accelerator:
    """L781-811, D818-858, T602-634."""
    config = ProjectConfiguration(project_dir=str(options.output), logging_dir=str(options.output / "logs"))
    accelerator = Accelerator(gradient_accumulation_steps=1, mixed_precision=options.precision, project_config=config)
    set_seed(0)
    options.output.mkdir(parents=True, exist_ok=True)
    if options.tuned:
        torch.backends.cuda.matmul.allow_tf32 = True
    return accelerator


class Models:
    """L869-899, D917-946, T646-662."""

    def __init__(self, options: Options) -> None:
        folder = options.model
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.noise = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        self.text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
        self.vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
        self.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)


def weight_dtype(accelerator: Accelerator) -> torch.dtype:
    """Of what is not trained (L907-913, D1148-1154, T794-800)."""
    return torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32


def make_optimizer(parameters: Iterable[nn.Parameter], rate: float, tuned: bool) -> Optimizer:
    """AdamW with the scripts' defaults (L1071-1081, D1044-1054, T740-747)."""
    return torch.optim.AdamW(
        parameters, lr=rate, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8, fused=True if tuned else None
    )


def make_loader(
    options: Options,
    pictures: Dataset[dict[str, Any]],
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]] | None = None,
) -> DataLoader[dict[str, Any]]:
    """Batches in an order that is drawn anew for each pass; `collate` None: as torch stacks them."""
    return DataLoader(
        pictures,
        batch_size=options.batch,
        shuffle=True,
        collate_fn=collate,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )


@torch.no_grad()
def encoded(models: Models, prompt: str, device: torch.device) -> Tensor:
    """`--pre_compute_text_embeddings` (L1083-1114); [1, tokens, width] on the CPU, for the data loader."""
    length = models.tokenizer.model_max_length
    ids = models.tokenizer(prompt, truncation=True, padding="max_length", max_length=length, return_tensors="pt")
    states: Tensor = models.text_encoder(ids.input_ids.to(device), return_dict=False)[0]
    return states.cpu()


def constant_rate(optimizer: Optimizer, steps: int) -> LambdaLR:
    """`--lr_scheduler=constant` (L1156-1163, D1129-1136, T780-786)."""
    return get_scheduler("constant", optimizer=optimizer, num_warmup_steps=0, num_training_steps=steps)


def noisy_latents(models: Models, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, their timesteps, and the target: the VAE in each step (L1253-1271, D1238-1263, T873-886; the
    target L1307-1313, D1292-1298, T894-900)."""
    with torch.no_grad():
        latents = models.vae.encode(pixels).latent_dist.sample() * models.vae.config.scaling_factor
    noise = torch.randn_like(latents)
    count = models.noise.config.num_train_timesteps
    timesteps = torch.randint(0, count, (latents.shape[0],), device=latents.device).long()
    noisy = models.noise.add_noise(latents, noise, timesteps)
    velocity = models.noise.config.prediction_type == "v_prediction"
    target = models.noise.get_velocity(latents, noise, timesteps) if velocity else noise
    return noisy, timesteps, target


def loss_of(prediction: Tensor, target: Tensor, prior: bool) -> Tensor:
    """With prior preservation the second half of the batch is the class's, weight 1 (L1315-1329, D1300-1332)."""
    if not prior:
        return functional.mse_loss(prediction.float(), target.float(), reduction="mean")
    own, classes = torch.chunk(prediction, 2, dim=0)
    target, class_target = torch.chunk(target, 2, dim=0)
    return functional.mse_loss(own.float(), target.float(), reduction="mean") + 1.0 * functional.mse_loss(
        classes.float(), class_target.float(), reduction="mean"
    )


def endlessly(loader: Iterable[Any]) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


def run_steps(
    options: Options,
    accelerator: Accelerator,
    trained: nn.Module,
    loader: Iterable[Any],
    rates: LambdaLR,
    watch: Watch,
    step: Callable[[Any], Tensor],
) -> int:
    """L1237-1374, D1224-1401, T858-976; `step` is what happens within `accelerator.accumulate`, and returns the
    loss.

    Returns:
        how many of the steps after the warm-up changed nothing.
    """
    bar = tqdm(range(options.steps), desc="Steps", disable=not accelerator.is_local_main_process)
    batches, skipped = endlessly(loader), 0
    for number in range(1, options.steps + 1):
        counts = watch.is_warm
        with accelerator.accumulate(trained):
            loss = step(next(batches))
        skipped += counts and accelerator.optimizer_step_was_skipped
        bar.update(1)
        bar.set_postfix(lr=rates.get_last_lr()[0])
        watch.step()
        if number % (options.checkpoint_every or CHECKPOINTING_STEPS) == 0:
            accelerator.save_state(str(options.output / f"checkpoint-{number}"))
            watch.checkpoint()
    if not bool(torch.isfinite(loss)):
        raise SystemExit("the loss became infinite: what was measured is no training")
    return skipped
