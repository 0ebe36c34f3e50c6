"""What a script is called with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PROMPT = "a photo of sks circle"
CLASS_PROMPT = "a photo of circle"
PLACEHOLDER, INITIALIZER = "<new-circle>", "circle"
CHECKPOINTING_STEPS = 500
"""The scripts' default (L354, D347, T411)."""


@dataclass(frozen=True)
class Options:
    """As the READMEs of the examples say, but for `tuned`."""

    technique: Literal["lora", "dreamBooth", "textualInversion"]
    model: Path
    pictures: Path
    classes: Path
    """Folder of the class pictures; drawn where they are missing."""
    output: Path
    batch: int
    steps: int
    resolution: int
    class_images: int
    class_steps: int
    precision: Literal["no", "bf16"]
    tuned: bool
    """Workers that load pictures, TF32, the text computed in advance, a fused optimizer, and class pictures drawn 16
    at a time: what the scripts have settings for, or one line would give them."""
    rank: int = 4
    checkpoint_every: int = 0
    """Steps; 0: as the scripts have it by default."""
    small: bool = False
    """For a GPU of 8 GiB, as the README of DreamBooth says: DeepSpeed ZeRO-2 with the optimizer on the CPU, activations
    computed twice, and one class picture drawn at a time. accelerate is told by the file that launches this."""
    text_encoder: bool = False
    """DreamBooth trains it too (`--train_text_encoder`)."""
    hold_at_most: int = 0
    """Bytes that torch may hold on the GPU; 0 for no limit."""

    @property
    def workers(self) -> int:
        """Of the data loader (`--dataloader_num_workers`, 0 by default)."""
        return 2 if self.tuned else 0

    @property
    def sample_batch(self) -> int:
        """Class pictures drawn at a time (`--sample_batch_size`, 4 by default: L344, D337)."""
        if self.small:
            return 1
        return 16 if self.tuned else 4
