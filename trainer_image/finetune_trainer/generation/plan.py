"""Which pictures a generation consists of, and what they are called. Pure functions.

A picture is named by a digest of all that it depends on. That is what makes a generation resumable: what is there
under its name need not be drawn again, whoever drew it, and other settings never pass for the same picture.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

VERSION = 1
"""Part of every key; a new one where the same settings draw other pictures."""
FOLDER = "pictures/"
LONGEST_SLUG = 48


@dataclass(frozen=True)
class Recipe:
    """What all pictures of a generation have in common."""

    model: str
    """SHA-256 of the weights' identity, as `identity_of`."""
    negative_prompt: str
    inference_steps: int
    guidance_scale: float
    """Classifier-free guidance; 1 is none."""
    sampler: Mapping[str, object]
    """Name and configuration, as Family.sampler."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""


@dataclass(frozen=True)
class Picture:
    """One picture that is to be there in the end."""

    prompt: str
    seed: int
    """Its first noise is what Diffusers draws for `torch.Generator().manual_seed(seed)`."""
    key: str
    """SHA-256 of the recipe, prompt and seed."""

    @property
    def path(self) -> str:
        """Its name within the output, with slashes."""
        return f"{FOLDER}{slug(self.prompt)}-seed-{self.seed}-{self.key[:12]}.png"


def identity_of(manifest: str | None, base: str | None) -> str:
    """SHA-256 that stands for all weights that draw.

    Args:
        manifest: SHA-256 of a run's manifest.json, which names every file of it; None for a base model.
        base: digest of the base model below, which --base-model may have changed; None where the results are a whole
            pipeline.
    """
    digests = [digest for digest in (manifest, base) if digest is not None]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def plan(recipe: Recipe, prompts: Sequence[str], count: int, seed: int) -> list[Picture]:
    """All pictures, prompt by prompt: picture k of each prompt has seed + k. A prompt that stands twice counts once.
    The number of pictures is in no key: 100 are the first 100 of 200."""
    return [
        Picture(prompt, seed + k, key_of(recipe, prompt, seed + k))
        for prompt in dict.fromkeys(prompts)
        for k in range(count)
    ]


def key_of(recipe: Recipe, prompt: str, seed: int) -> str:
    """SHA-256 in hexadecimal of everything that the picture depends on. The batch size is not among it: it only
    changes how sums are rounded, by a level or two of 255 in single pixels."""
    whole = {"version": VERSION, **asdict(recipe), "prompt": prompt, "seed": seed}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def slug(prompt: str) -> str:
    """The beginning of `prompt` as a part of a file name: letters, digits and dashes."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return words[:LONGEST_SLUG].rstrip("-") or "no-words"
