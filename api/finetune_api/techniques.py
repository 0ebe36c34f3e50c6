"""What works for each technique without any configuration (sources: docs/decisions/0003)."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.outputs import Format


@dataclass(frozen=True)
class TechniqueDefaults:
    """Built-in defaults that depend on the technique, for SD 1.5 and 2.x."""

    steps: int
    learning_rate: float
    checkpoint_seconds: int
    grace_seconds: int
    formats: tuple[Format, ...]
    """What the weights can be published as."""
    default_formats: tuple[Format, ...]
    """What they are published as where nobody asks."""


TECHNIQUES = {
    # half of the users load a LoRA in a web UI, and it weighs a few MB
    "lora": TechniqueDefaults(
        500, 1e-4, 60, 120, ("Diffusers", "Kohya", "SingleFile", "Merged"), ("Diffusers", "Kohya")
    ),
    "dreamBooth": TechniqueDefaults(400, 5e-6, 300, 600, ("Diffusers", "SingleFile"), ("Diffusers",)),
    "textualInversion": TechniqueDefaults(3000, 5e-4, 60, 120, ("Diffusers", "Automatic1111"), ("Diffusers",)),
    "hypernetwork": TechniqueDefaults(1000, 1e-5, 60, 120, ("Automatic1111",), ("Automatic1111",)),
}
