"""Text encoded once. Only for a frozen text encoder: where it is trained, samples carry token ids in place of this."""

from __future__ import annotations

import torch

from finetune_trainer.families.base import Cond, Family


class TextCache:
    """Conditioning by token ids, so that prompts that differ only in what the tokenizer drops share one entry."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._kept: dict[tuple[int, ...], Cond] = {}

    @torch.no_grad()
    def get(self, prompt: str) -> Cond:
        """One row, on the family's device."""
        token_ids = self._family.tokenize([prompt])
        key = tuple(token_ids[0].tolist())
        if key not in self._kept:
            self._kept[key] = self._family.encode_text(token_ids)
        return self._kept[key]
