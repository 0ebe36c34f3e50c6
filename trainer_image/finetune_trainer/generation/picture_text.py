"""What a picture says of itself: the PNG text chunk `parameters`, as AUTOMATIC1111 writes it and as web UIs and
galleries read it (its modules/infotext_utils.py)."""

from __future__ import annotations

import io
import json

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from finetune_trainer.generation.plan import Picture, Recipe

CHUNK = "parameters"
HASH_LENGTH = 10
SAMPLERS = {"DPMSolverMultistepScheduler": "DPM++ 2M", "DDIMScheduler": "DDIM"}
"""Diffusers' names → what web UIs call the same algorithm."""


def parameters(recipe: Recipe, picture: Picture, model_name: str) -> str:
    """The text: prompt, negative prompt, and a line of settings, comma-separated."""
    name = str(recipe.sampler.get("name", ""))
    settings = {
        "Steps": recipe.inference_steps,
        "Sampler": SAMPLERS.get(name, name),
        "CFG scale": f"{recipe.guidance_scale:g}",
        "Seed": picture.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model hash": recipe.model[:HASH_LENGTH],
        "Model": model_name,
    }
    lines = [picture.prompt]
    if recipe.negative_prompt:
        lines.append(f"Negative prompt: {recipe.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quoted(str(value))}" for key, value in settings.items()))
    return "\n".join(lines)


def png(picture: Image.Image, text: str) -> bytes:
    """`picture` as a PNG file that says `text`."""
    chunks = PngInfo()
    chunks.add_text(CHUNK, text)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def _quoted(text: str) -> str:
    """A value that holds a separator stands as a JSON string."""
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",:\n") else text
