"""One text encoder with its tokenizer: windows of tokens, and words that are new to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from finetune_trainer.families.words import Vocabulary


@dataclass(frozen=True)
class Read:
    """What a text encoder makes of B rows of windows."""

    hidden: Tensor
    """float32 [B, chunks * length, width]"""


class TextReader:
    """A CLIP text encoder and its tokenizer. Prompts of any length are read in windows as AUTOMATIC1111 does: each
    has a begin, up to length - 2 tokens, an end, and padding."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: nn.Module) -> None:
        self._tokenizer, self._encoder = tokenizer, encoder
        self._length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        embeddings = encoder.text_model.embeddings
        self._words = Vocabulary(embeddings.token_embedding)
        embeddings.token_embedding = self._words
        self._new: dict[str, list[int]] = {}
        """Words that were added, and the ids of their rows."""

    @property
    def vocabulary(self) -> Tensor:
        return self._words.weight

    def tokenize(self, prompts: Sequence[str], chunks: int) -> Tensor:
        """int64 [B, chunks * length]"""
        return torch.tensor([self._windows(self._ids(prompt), chunks) for prompt in prompts])

    def chunks_of(self, prompt: str) -> int:
        """Windows that `prompt` fills, at least 1."""
        return max(1, -(-len(self._ids(prompt)) // (self._length - 2)))

    def encode(self, token_ids: Tensor, clip_skip: int) -> Read:
        """`token_ids` [B, chunks * length] on the encoder's device."""
        windows = token_ids.reshape(-1, self._length)
        if clip_skip == 0:
            hidden = self._encoder(windows)[0]
        else:
            states = self._encoder(windows, output_hidden_states=True).hidden_states
            hidden = self._encoder.text_model.final_layer_norm(states[-1 - clip_skip])
        return Read(hidden.reshape(len(token_ids), -1, hidden.shape[-1]))

    def word_known(self, word: str) -> bool:
        """Whether `word` is a single token."""
        ids = self._ids(word)
        return len(ids) == 1 and ids[0] != self._tokenizer.unk_token_id

    def embed(self, text: str) -> Tensor:
        """float32 [tokens, width]"""
        return self._words.weight[self._ids(text)].detach().clone()

    def add_word(self, word: str, vectors: Tensor) -> nn.Parameter:
        """The new rows. Raises ValueError where the word is known."""
        if word in self._new or word in self._tokenizer.get_vocab():
            raise ValueError(f"{word} is in the vocabulary already")
        first = self._words.count
        rows = self._words.add(vectors)
        self._new[word] = list(range(first, first + len(vectors)))
        return rows

    def _ids(self, prompt: str) -> list[int]:
        """Tokens of `prompt` without begin and end."""
        ids: list[int] = []
        for number, piece in enumerate(self._pieces(prompt)):
            if number % 2:
                ids += self._new[piece]
            elif piece.strip():
                ids += self._tokenizer(piece, add_special_tokens=False).input_ids
        return ids

    def _pieces(self, prompt: str) -> list[str]:
        """Text and new words in turn; text first."""
        pieces = [prompt]
        # longer words first: one may be the beginning of another
        for word in sorted(self._new, key=len, reverse=True):
            pieces = [
                part
                for number, piece in enumerate(pieces)
                for part in ([piece] if number % 2 else _between(piece.split(word), word))
            ]
        return pieces

    def _windows(self, ids: list[int], chunks: int) -> list[int]:
        room = self._length - 2
        begin, end, pad = (
            self._tokenizer.bos_token_id,
            self._tokenizer.eos_token_id,
            self._tokenizer.pad_token_id,
        )
        row: list[int] = []
        for chunk in range(chunks):
            part = ids[chunk * room : (chunk + 1) * room]
            row += [begin, *part, end, *[pad] * (room - len(part))]
        return row


def _between(parts: list[str], word: str) -> list[str]:
    joined = [parts[0]]
    for part in parts[1:]:
        joined += [word, part]
    return joined
