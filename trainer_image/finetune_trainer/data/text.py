"""Text read and encoded once for each prompt."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from finetune_trainer.families.base import Cond, Family

MAX_KEPT = 256
"""Prompts: shuffled tags make new ones without end, and each takes up to a few hundred kB."""


class TextCache:
    """Token ids and conditioning of the prompts used last. Encoding is quick: nothing goes to disk."""

    def __init__(self, family: Family, chunks: int, frozen: bool) -> None:
        """
        Args:
            chunks: windows of tokens, the same for all prompts of a run.
            frozen: whether the text encoder is; one that is trained gets token ids in place of its own output.
        """
        self._family, self._chunks, self._frozen = family, chunks, frozen
        self._kept: OrderedDict[str, tuple[Tensor, Cond | None]] = OrderedDict()

    @torch.no_grad()
    def get(self, prompt: str) -> tuple[Tensor, Cond | None]:
        """Token ids, int64 [1, encoders, tokens], and the conditioning, one row on the family's device."""
        if prompt not in self._kept:
            token_ids = self._family.tokenize([prompt], self._chunks)
            self._kept[prompt] = (token_ids, self._family.encode_text(token_ids) if self._frozen else None)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(prompt)
        return self._kept[prompt]
