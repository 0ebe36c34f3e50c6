"""A whole pipeline in Diffusers' layout, for `from_pretrained`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedTokenizerBase

from finetune_trainer.exports.plain_saving import plain_saving
from finetune_trainer.exports.words import Words
from finetune_trainer.families.base import Family
from finetune_trainer.families.loading import tokenizer_of

WHOLE = "1TB"
"""One file for each part: Diffusers would cut what is over 10 GB in shards, and SDXL's UNet in float32 is 10.27 GB."""


def write_pipeline(family: Family, parts: Mapping[str, nn.Module], words: Words, folder: Path) -> None:
    """Writes `parts` with the family's own scheduler and tokenizers, safetensors throughout. New words become tokens
    of the tokenizers and rows of the text encoders; a word of several vectors the tokens word, word_1, word_2 …, which
    Diffusers puts in its place.

    Args:
        parts: plain copies, changed where there are words.
    """
    pipeline = family.pipeline()
    tokenizers: dict[str, PreTrainedTokenizerBase] = {}
    if words:
        for part in family.text_encoders:
            name = tokenizer_of(part)
            tokenizers[name] = tokenizer = copy.deepcopy(getattr(pipeline, name))
            add_words(tokenizer, parts[part], {word: vectors[part] for word, vectors in words.items()})
    pipeline.register_modules(**parts, **tokenizers)
    with plain_saving():
        pipeline.save_pretrained(folder, safe_serialization=True, max_shard_size=WHOLE)


@torch.no_grad()
def add_words(tokenizer: PreTrainedTokenizerBase, encoder: nn.Module, words: Mapping[str, Tensor]) -> None:
    """Puts `words` (placeholder → [n, width]) into a tokenizer and a text encoder's table."""
    embeddings = encoder.text_model.embeddings
    table = embeddings.token_embedding.weight
    for word, vectors in words.items():
        tokens = [word, *(f"{word}_{number}" for number in range(1, len(vectors)))]
        # as it is written: Diffusers looks for a token in the prompt, and would not find a lower-cased one there
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
        ids = tokenizer.convert_tokens_to_ids(tokens)
        missing = max(ids) + 1 - len(table)
        if missing > 0:
            table = torch.cat([table, table.new_zeros(missing, table.shape[1])])
        table[ids] = vectors.detach().to(table)
    embeddings.token_embedding = nn.Embedding.from_pretrained(table)
    encoder.config.vocab_size = len(table)
    # with the id 2 of old configurations, the pooled text would be read at the highest id: now a new word's
    encoder.config.eos_token_id = tokenizer.eos_token_id
    encoder.text_model.eos_token_id = tokenizer.eos_token_id
