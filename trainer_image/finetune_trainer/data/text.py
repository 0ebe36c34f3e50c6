"""Text encoded once. Only for a frozen text encoder: where it is trained, samples carry token ids in place of this."""

from __future__ import annotations

import torch

from finetune_trainer.families.base import Cond, Family


class TextCache:
    """The conditioning of each prompt of this run. Prompts are few and encoding is quick: nothing goes to disk."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._kept: dict[str, Cond] = {}

    @torch.no_grad()
    def get(self, prompt: str) -> Cond:
        """One row, on the family's device."""
        if prompt not in self._kept:
            self._kept[prompt] = self._family.encode_text(self._family.tokenize([prompt]))
        return self._kept[prompt]
