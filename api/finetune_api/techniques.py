"""What works for each technique without any configuration (sources: docs/decisions/0003)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TechniqueDefaults:
    """Built-in defaults that depend on the technique, for SD 1.5 and 2.x."""

    steps: int
    learning_rate: float
    checkpoint_seconds: int
    grace_seconds: int


TECHNIQUES = {
    "lora": TechniqueDefaults(500, 1e-4, 60, 120),
    "dreamBooth": TechniqueDefaults(400, 5e-6, 300, 600),
    "textualInversion": TechniqueDefaults(3000, 5e-4, 60, 120),
    "hypernetwork": TechniqueDefaults(1000, 1e-5, 60, 120),
}
