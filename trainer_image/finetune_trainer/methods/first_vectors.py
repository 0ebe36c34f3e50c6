"""What the vectors of a new word start from: words of the vocabulary, an embedding file, or the vocabulary's mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from finetune_api.methods import TokenSpec
from torch import Tensor

from finetune_trainer.errors import ConfigurationError, DataError
from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import Files


def first_vectors(token: TokenSpec, field: str, family: Family, files: Files) -> dict[str, Tensor]:
    """First values of the vectors of `token`.

    Args:
        token: the new word.
        field: where it stands in the run, for messages: method.textualInversion.tokens[0].
        family: the base model.
        files: where the file of `initialEmbeddingUri` lies.

    Returns:
        Text encoder → float32 [vectors, width].

    Raises:
        ConfigurationError: an initializer's word is no token, or it has more words than there are vectors.
        DataError: the file is no embedding for this model.
    """
    if token.initial_embedding_uri is not None:
        # not above: the readers know what this package defines
        from finetune_trainer.exports.readers import read_words

        path = files.path(token.initial_embedding_uri)
        return _from_file(token, f"{field}.initialEmbeddingUri", path, read_words(path), family)
    if token.initializer is not None:
        return _from_words(token, field, family)
    return {
        name: family.vocabulary(name).float().mean(0, keepdim=True).repeat(token.vectors, 1)
        for name in family.text_encoders
    }


def _from_words(token: TokenSpec, field: str, family: Family) -> dict[str, Tensor]:
    """The n-th vector starts from the n-th word. With fewer words than vectors they start over."""
    words = (token.initializer or "").split()
    if not words:
        raise ConfigurationError(f"{field}.initializer is blank; give a word, or remove the field")
    for word in words:
        if not family.word_known(word):
            raise ConfigurationError(
                f"{field}.initializer has {word!r}, which is no token of the model's vocabulary; use common words, "
                "such as the class of what the pictures show"
            )
    if len(words) > token.vectors:
        raise ConfigurationError(
            f"{field}.initializer has {len(words)} words, and vectors is {token.vectors}; set vectors: {len(words)}, "
            "or give fewer words"
        )
    order = [index % len(words) for index in range(token.vectors)]
    return {name: rows.float()[order] for name, rows in family.embed(" ".join(words)).items()}


def _from_file(
    token: TokenSpec,
    field: str,
    path: Path,
    words: Mapping[str | None, Mapping[str | None, Tensor]],
    family: Family,
) -> dict[str, Tensor]:
    if token.placeholder not in words and len(words) != 1:
        raise DataError(
            f"{field}: {path.name} holds the words {', '.join(sorted(map(str, words)))}; name the placeholder as the "
            "one to start from"
        )
    found = words[token.placeholder] if token.placeholder in words else next(iter(words.values()))
    if None in found and len(family.text_encoders) == 1:
        # files for models with one text encoder do not say which
        found = {family.text_encoders[0]: found[None]}
    if set(found) != set(family.text_encoders):
        raise DataError(
            f"{field}: {path.name} has vectors for {_listed(found)}, and this model reads text with "
            f"{_listed(family.text_encoders)}; give an embedding made with a model of this kind"
        )
    rows: dict[str, Tensor] = {}
    for name in family.text_encoders:
        given, width = found[name], family.vocabulary(name).shape[1]
        if given.shape[1] != width:
            raise DataError(
                f"{field}: {path.name} has vectors {given.shape[1]} wide, and those of this model's {name} are {width} "
                "wide; give an embedding made with a model of this kind"
            )
        if len(given) != token.vectors:
            raise DataError(
                f"{field}: {path.name} has {len(given)} vectors, and vectors is {token.vectors}; "
                f"set vectors: {len(given)}"
            )
        rows[name] = given.float()
    return rows


def _listed(parts: Iterable[str | None]) -> str:
    return " and ".join(sorted(part or "one text encoder" for part in parts))
