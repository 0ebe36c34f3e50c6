"""Pictures for the report: the same prompts and seeds before and after training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from finetune_trainer.families.base import Family

BATCH = 8
"""Pictures that are drawn or looked at together."""

Drawn = tuple[int, Image.Image]
"""Which prompt, and a picture of it; the i-th of a prompt has seed i."""


def drawn_pictures(
    family: Family,
    prompts: Sequence[str],
    images_per_prompt: int,
    steps: int,
    guidance: float,
    on_progress: Callable[[int, int], None],
) -> Iterator[list[Drawn]]:
    """Draws with the family as it is now: the base model before, the trained one after a technique was installed.

    Args:
        prompts: what to draw.
        images_per_prompt: picture i of each prompt has seed i.
        steps: denoising steps.
        guidance: classifier-free guidance; 1 is none.
        on_progress: gets pictures done and pictures in all, after each batch.

    Yields:
        As they are drawn: which prompt, and a picture of it, at the model's own resolution.
    """
    jobs = [(index, seed) for index in range(len(prompts)) for seed in range(images_per_prompt)]
    for start in range(0, len(jobs), BATCH):
        batch = jobs[start : start + BATCH]
        pictures = family.draw(
            [prompts[index] for index, _ in batch],
            [""] * len(batch),
            torch.cat([noise_of(family, seed) for _, seed in batch]),
            steps,
            guidance,
        )
        yield [(index, picture) for (index, _), picture in zip(batch, pictures, strict=True)]
        on_progress(start + len(batch), len(jobs))


def first_pictures(batches: Iterable[Sequence[Drawn]], prompts: int, keep: int) -> tuple[tuple[Image.Image, ...], ...]:
    """For each prompt its first `keep` pictures."""
    rows: list[list[Image.Image]] = [[] for _ in range(prompts)]
    for batch in batches:
        for index, picture in batch:
            if len(rows[index]) < keep:
                rows[index].append(picture)
    return tuple(map(tuple, rows))


def noise_of(family: Family, seed: int) -> Tensor:
    """Where the picture with this seed starts, float32 [1, channels, height, width]: what Diffusers draws for
    `generator=torch.Generator().manual_seed(seed)`, so that anyone can draw the picture again."""
    side = family.resolution // family.pixels_per_latent
    return torch.randn((1, family.latent_channels, side, side), generator=torch.Generator().manual_seed(seed))
