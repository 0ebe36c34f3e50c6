"""Textual Inversion: new words for a frozen model (https://arxiv.org/abs/2208.01618).

The vectors of the new words are parameters of their own beside the vocabulary's table, in each text encoder of the
model. So nothing else can move, and no optimizer state is kept for a table of which nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from finetune_api.methods import TokenSpec
from torch import Tensor, nn

from finetune_trainer.errors import ConfigurationError, DataError
from finetune_trainer.families.base import Family
from finetune_trainer.families.windows import words_in
from finetune_trainer.methods.base import Files, Needs, NewWords, ParameterGroup, Result
from finetune_trainer.methods.first_vectors import first_vectors
from finetune_trainer.methods.templates import Property, templates_for


class TextualInversion:
    """Implements Method."""

    needs = Needs(live_text_encoder=True)

    def __init__(
        self,
        tokens: Sequence[TokenSpec],
        field: str,
        prop: Property = "Object",
        normalize: bool = True,
        prompt: str | None = None,
    ) -> None:
        """
        Args:
            tokens: the new words.
            field: where they stand in the run, for messages: method.textualInversion.tokens.
            prop: which templates the captions are made of.
            normalize: whether the vectors keep the length that is usual in the vocabulary.
            prompt: the caption of every picture, with all the words in it, in place of the templates.
        """
        self._tokens, self._field, self._property = tokens, field, prop
        self._normalize, self._prompt = normalize, prompt
        self._rows: dict[str, Mapping[str, nn.Parameter]] = {}
        self.captions: tuple[str, ...] = () if prompt is None else (prompt,)
        self.words = tuple(token.placeholder for token in tokens)
        self.own_rates: tuple[float, ...] = ()

    def check(self, family: Family, files: Files) -> None:
        self._starts(family, files)

    def install(self, family: Family, files: Files) -> tuple[ParameterGroup, ...]:
        for word, start in self._starts(family, files).items():
            self._rows[word] = family.add_word(word, start)
        if self._prompt is None:
            words = " ".join(self.words)
            self.captions = tuple(t.format(words) for t in templates_for(self._property, family.word_known))
        return tuple(self._group(family, name) for name in family.text_encoders)

    def result(self) -> NewWords:
        return NewWords(
            {word: {name: rows.detach() for name, rows in parts.items()} for word, parts in self._rows.items()}
        )

    @torch.no_grad()
    def load(self, result: Result) -> None:
        assert isinstance(result, NewWords), "the result of a Textual Inversion"
        for word, parts in self._rows.items():
            for name, rows in parts.items():
                given = result.words.get(word, {}).get(name)
                if given is None or given.shape != rows.shape:
                    has = "nothing" if given is None else f"{given.shape[0]} vectors of {given.shape[1]}"
                    raise DataError(
                        f"the embedding file has {has} for {word} and the {name}, and this run trained "
                        f"{rows.shape[0]} vectors of {rows.shape[1]}; give the file that this run wrote"
                    )
                rows.copy_(given)

    def _group(self, family: Family, name: str) -> ParameterGroup:
        """The vectors in one text encoder. No weight decay: it would pull them to zero, where no word is."""
        parameters = {f"words.{name}.{word}": parts[name] for word, parts in sorted(self._rows.items())}
        constraint = partial(keep_length, usual_length(family, name)) if self._normalize else None
        return ParameterGroup(f"words.{name}", parameters, weight_decay=0.0, constraint=constraint)

    def _starts(self, family: Family, files: Files) -> dict[str, Mapping[str, Tensor]]:
        """What each word starts from, before any is added."""
        starts: dict[str, Mapping[str, Tensor]] = {}
        for index, token in enumerate(self._tokens):
            field = f"{self._field}[{index}]"
            self._check_placeholder(token, field, family, starts)
            start = first_vectors(token, field, family, files)
            if self._normalize:
                start = {name: _of_length(rows, usual_length(family, name)) for name, rows in start.items()}
            starts[token.placeholder] = start
        return starts

    def _check_placeholder(self, token: TokenSpec, field: str, family: Family, others: Iterable[str]) -> None:
        word = token.placeholder
        # capitals do not count for a text encoder
        if word.lower() in map(str.lower, others):
            raise ConfigurationError(f"{field}.placeholder is {word}, as another token's is; give each its own")
        if family.word_known(word):
            raise ConfigurationError(
                f"{field}.placeholder is {word}, which is in the model's vocabulary already; choose a word that is "
                f"not, such as <{word}-1>"
            )
        if self._prompt is not None and word not in words_in(self._prompt, self.words):
            raise ConfigurationError(
                f"{field}.placeholder is {word}, which does not stand in the prompt ({self._prompt}), so nothing would "
                "be learned of it; put it there"
            )


def usual_length(family: Family, name: str) -> float:
    """Mean Euclidean length of the vectors in the table of the text encoder `name`."""
    return float(family.vocabulary(name).float().norm(dim=1).mean())


def keep_length(length: float, rows: Tensor) -> None:
    """Scales each row to `length`, in place.

    Vectors that grow steal the attention of the other words of a prompt, which is how a Textual Inversion overfits:
    the picture comes out whatever else is asked for. The text encoder normalises the sum of word and position in each
    layer, so the direction is what says something, and the length only how loudly.
    """
    rows.copy_(_of_length(rows, length))


def _of_length(rows: Tensor, length: float) -> Tensor:
    # a row of zeros has no direction and stays
    return rows * (length / rows.norm(dim=1, keepdim=True).clamp_min(1e-12))
