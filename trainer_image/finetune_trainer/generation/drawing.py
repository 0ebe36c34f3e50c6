"""Draws what is missing of a plan, batch by batch; each picture is stored as soon as it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from finetune_trainer.errors import Interrupted
from finetune_trainer.evaluation.drawing import noise_of
from finetune_trainer.families.base import Family
from finetune_trainer.generation.picture_text import parameters, png
from finetune_trainer.generation.plan import FOLDER, Picture, Recipe
from finetune_trainer.publish.store import Store

WHAT = "pictures"


def recipe_of(family: Family, model: str, negative_prompt: str, steps: int, guidance: float) -> Recipe:
    """The recipe of pictures that `family` draws at its own resolution. `model`: see Recipe."""
    side = family.resolution
    return Recipe(model, negative_prompt, steps, guidance, dict(family.sampler), width=side, height=side)


def draw_missing(
    family: Family,
    recipe: Recipe,
    pictures: Sequence[Picture],
    model_name: str,
    store: Store,
    batch_size: int,
    on_progress: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> int:
    """Draws those of `pictures` that are not in `store`.

    Args:
        family: with everything installed that was trained.
        model_name: what the pictures say they were drawn with.
        on_progress: gets pictures there and pictures in all, at the start and after each batch.
        should_stop: asked before each batch.

    Returns:
        How many were drawn now.

    Raises:
        Interrupted: `should_stop` said so; what was drawn is kept.
        RunError: the store failed.
    """
    there = {stored.key for stored in store.list(FOLDER)}
    missing = [picture for picture in pictures if picture.path not in there]
    done = len(pictures) - len(missing)
    on_progress(done, len(pictures))
    for start in range(0, len(missing), batch_size):
        if should_stop():
            raise Interrupted(f"stopped after {done + start} of {len(pictures)} {WHAT}; they are kept")
        batch = missing[start : start + batch_size]
        drawn = family.draw(
            [picture.prompt for picture in batch],
            [recipe.negative_prompt] * len(batch),
            torch.cat([noise_of(family, picture.seed) for picture in batch]),
            recipe.inference_steps,
            recipe.guidance_scale,
        )
        for picture, image in zip(batch, drawn, strict=True):
            store.put_bytes(picture.path, png(image, parameters(recipe, picture, model_name)))
        on_progress(done + start + len(batch), len(pictures))
    return len(missing)
