"""Text read and encoded once for each prompt, in memory and, where there is a cache, on disk."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune_trainer.data.disk_cache import DiskCache
from finetune_trainer.data.latents import arithmetic
from finetune_trainer.families.base import Cond, Family

MAX_KEPT = 256
"""Prompts: shuffled tags make new ones without end, and each takes up to a few hundred kB."""


class TextCache:
    """Token ids and conditioning of the prompts used last, on the CPU."""

    def __init__(
        self, family: Family, chunks: int, frozen: bool, cache: DiskCache | None = None, clip_skip: int = 0
    ) -> None:
        """
        Args:
            chunks: windows of tokens, the same for all prompts of a run.
            frozen: whether the text encoder is; one that is trained gets token ids in place of its own output.
            cache: where the conditioning is kept between runs.
            clip_skip: layers at the end of the text encoders that `family` leaves out.
        """
        self._family, self._chunks, self._frozen, self._cache = family, chunks, frozen, cache
        encoders = " ".join(family.digests[part] for part in family.text_encoders)
        self._encoders = f"1 {arithmetic(family)} {family.name} {clip_skip} {encoders}"
        self._kept: OrderedDict[str, tuple[Tensor, Cond | None]] = OrderedDict()

    def get(self, prompt: str) -> tuple[Tensor, Cond | None]:
        """Token ids, int64 [1, encoders, tokens], and the conditioning, one row."""
        if prompt not in self._kept:
            token_ids = self._family.tokenize([prompt], self._chunks)
            self._kept[prompt] = (token_ids, self._conditioning(token_ids) if self._frozen else None)
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(prompt)
        return self._kept[prompt]

    def _conditioning(self, token_ids: Tensor) -> Cond:
        if self._cache is None:
            return self._encode(token_ids)
        # not by the prompt: what tokenizers make of one may change, and several read the same
        text = f"{self._encoders} {token_ids.tolist()}"
        name = f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
        found = self._cache.read(name, _read)
        if found is None:
            found = self._encode(token_ids)
            tensors = {"embeddings": found.embeddings}
            if found.pooled is not None:
                tensors["pooled"] = found.pooled
            self._cache.write(name, lambda file: save_file(tensors, file))
        return found

    @torch.no_grad()
    def _encode(self, token_ids: Tensor) -> Cond:
        cond = self._family.encode_text(token_ids)
        pooled = cond.pooled.cpu().contiguous() if cond.pooled is not None else None
        return Cond(cond.embeddings.cpu().contiguous(), pooled)


def _read(path: Path) -> Cond:
    tensors = load_file(path)
    return Cond(tensors["embeddings"], tensors.get("pooled"))
