"""One text encoder with its tokenizer: windows of tokens, and words that are new to it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from finetune_trainer.errors import ConfigurationError, DataError
from finetune_trainer.families.windows import framed, windows, word_pattern
from finetune_trainer.families.words import Vocabulary


@dataclass(frozen=True)
class Read:
    """What a text encoder makes of B rows of windows."""

    hidden: Tensor
    """float32 [B, chunks * length, width]"""
    pooled: Tensor | None
    """float32 [B, projection] of the first window, where the encoder has a projection"""


class TextReader:
    """A CLIP text encoder and its tokenizer. Prompts of any length are read in windows as AUTOMATIC1111 does: each
    has a begin, up to length - 2 tokens, an end, and padding."""

    def __init__(self, tokenizer: CLIPTokenizer, encoder: nn.Module, length: int, skip: int, final_norm: bool) -> None:
        """
        Args:
            length: tokens of a window, begin and end included.
            skip: layers left out at the end.
            final_norm: whether the last layer norm is applied to what is read.
        """
        self._tokenizer, self._encoder = tokenizer, encoder
        self._length, self._skip, self._final_norm = length, skip, final_norm
        self._embeddings = encoder.text_model.embeddings
        self._new = added_words(tokenizer)
        """Words that were added, in lower case, and the ids of their rows."""
        self._pattern: re.Pattern[str] | None = word_pattern(self._new) if self._new else None

    @property
    def vocabulary(self) -> Tensor:
        """The frozen table, float32 [words, width]."""
        table: Tensor = self._embeddings.token_embedding.weight
        return table.detach()

    def tokenize(self, prompts: Sequence[str], chunks: int) -> Tensor:
        """int64 [B, chunks * length]"""
        tokenizer, room = self._tokenizer, self._length - 2
        marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        return torch.tensor(
            [framed(windows(self._pieces(prompt), room), chunks, room, *marks) for prompt in prompts],
            dtype=torch.int64,
        )

    def chunks_of(self, prompt: str) -> int:
        """Windows that `prompt` fills, at least 1."""
        return len(windows(self._pieces(prompt), self._length - 2))

    def encode(self, token_ids: Tensor) -> Read:
        """`token_ids` [B, chunks * length] on the encoder's device."""
        ids = token_ids.reshape(-1, self._length)
        if self._skip == 0 and self._final_norm:
            output = self._encoder(ids)
            hidden = output.last_hidden_state
        else:
            output = self._encoder(ids, output_hidden_states=True)
            hidden = output.hidden_states[-1 - self._skip]
            if self._final_norm:
                hidden = self._encoder.text_model.final_layer_norm(hidden)
        rows = len(token_ids)
        pooled = None
        if hasattr(self._encoder, "text_projection"):
            # at the first end of the first window. The library takes the place of the highest id where a configuration
            # has the end-of-text id 2, as SDXL's has, and that would be a new word's
            last = output.last_hidden_state.reshape(rows, -1, *output.last_hidden_state.shape[1:])[:, 0]
            ends = (token_ids[:, : self._length] == self._tokenizer.eos_token_id).int().argmax(dim=1)
            pooled = self._encoder.text_projection(last[torch.arange(rows, device=ends.device), ends])
        return Read(hidden.reshape(rows, -1, hidden.shape[-1]), pooled)

    def word_known(self, word: str) -> bool:
        """Whether `word` is a single token, or a new word."""
        ids = self._ids(word)
        return word.strip().lower() in self._new or (len(ids) == 1 and ids[0] not in self._tokenizer.all_special_ids)

    @torch.no_grad()
    def embed(self, text: str) -> Tensor:
        """float32 [tokens, width]. Raises ConfigurationError for a word that the vocabulary cannot spell."""
        ids = self._ids(text)
        if not ids or self._tokenizer.unk_token_id in ids:
            raise ConfigurationError(f"“{text}” is nothing that the base model's vocabulary can spell; use other words")
        vectors: Tensor = self._embeddings.token_embedding(torch.tensor(ids, device=self.vocabulary.device))
        return vectors.clone()

    def check_word(self, word: str, part: str, vectors: Mapping[str, Tensor]) -> None:
        """
        Raises:
            ValueError: the word is known.
            DataError: the vectors are not for this kind of text encoder, `part`.
        """
        if not word.strip() or self.word_known(word):
            raise ValueError(f"{word!r} is in the vocabulary already")
        if part not in vectors:
            raise DataError(
                f"{word} has no vectors for {part}, only for {', '.join(vectors) or 'nothing'}; use an embedding that "
                "was made for this kind of base model"
            )
        width = self.vocabulary.shape[1]
        if vectors[part].ndim != 2 or vectors[part].shape[1] != width or not len(vectors[part]):
            raise DataError(
                f"the vectors of {word} for {part} have shape {tuple(vectors[part].shape)}, but the base model takes "
                f"(n, {width}); use an embedding that was made for this kind of base model"
            )
        if len({len(rows) for rows in vectors.values()}) > 1:
            counts = ", ".join(f"{len(rows)} for {name}" for name, rows in vectors.items())
            raise DataError(f"{word} has {counts} vectors; all text encoders need the same number")

    def add_word(self, word: str, vectors: Tensor) -> nn.Parameter:
        """The new rows. `check_word` comes first."""
        if not isinstance(self._embeddings.token_embedding, Vocabulary):
            self._embeddings.token_embedding = Vocabulary(self._embeddings.token_embedding)
        vocabulary: Vocabulary = self._embeddings.token_embedding
        first = vocabulary.count
        rows = vocabulary.add(vectors)
        self._new[word.strip().lower()] = list(range(first, first + len(vectors)))
        self._pattern = word_pattern(self._new)
        return rows

    def _ids(self, text: str) -> list[int]:
        """Tokens of `text` without begin and end."""
        return [token for piece in self._pieces(text) for token in piece]

    def _pieces(self, prompt: str) -> list[list[int]]:
        """Each token for itself, the rows of a new word together."""
        parts = [prompt] if self._pattern is None else self._pattern.split(prompt)
        pieces: list[list[int]] = []
        for number, part in enumerate(parts):
            if number % 2:
                pieces.append(self._new[part.lower()])
            elif part.strip():
                # verbose would warn of what windows are for
                tokens = self._tokenizer(part, add_special_tokens=False, verbose=False).input_ids
                pieces += [[token] for token in tokens]
        return pieces


def added_words(tokenizer: CLIPTokenizer) -> dict[str, list[int]]:
    """Words that a model brings along beside its vocabulary, in lower case, and their ids. By Diffusers' convention a
    word of several vectors is the tokens word, word_1, word_2 …, and stands for all of them."""
    added = {
        word: index for word, index in tokenizer.get_added_vocab().items() if word not in tokenizer.all_special_tokens
    }
    found: dict[str, list[int]] = {}
    for word, index in added.items():
        base, _, number = word.rpartition("_")
        if base in added and number.isdecimal():
            continue
        more = itertools.takewhile(added.__contains__, (f"{word}_{count}" for count in itertools.count(1)))
        found[word.lower()] = [index, *(added[token] for token in more)]
    return found
