"""A family that draws as the results do: the base model, and on it what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from finetune_api import TrainingRun
from finetune_api.methods import MethodSpec, TokenSpec
from torch import Tensor

from finetune_trainer.errors import DataError
from finetune_trainer.exports.readers import read_adapter, read_hypernetwork, read_words
from finetune_trainer.families import Family, load_family
from finetune_trainer.generation.sources import Fetched
from finetune_trainer.methods import AdapterWeights, Hypernetwork, Method, NewWords, Result, make_methods
from finetune_trainer.methods.base import NoFiles


def load_drawable(fetched: Fetched, device: torch.device) -> Family:
    """Loads what `fetched` holds.

    Raises:
        DataError: a file cannot be read, or does not fit the base model.
    """
    results = fetched.results
    if results is None:
        assert fetched.base is not None, "a base model is its own"
        return load_family(fetched.base.path, device)
    clip_skip = results.run.training.clip_skip
    if fetched.base is None:
        index = next(path for name, path in fetched.weights.items() if name.endswith("pipeline/model_index.json"))
        return load_family(index.parent, device, clip_skip)
    family = load_family(fetched.base.path, device, clip_skip)
    for method in installed(results.run, family):
        method.load(_read(method, fetched, family))
    return family


def installed(run: TrainingRun, family: Family) -> tuple[Method, ...]:
    """The techniques of `run` on `family`, as they are before the first step."""
    methods = make_methods(from_scratch(run.method), run.training.seed)
    for method in methods:
        method.install(family, NoFiles())
    return methods


def from_scratch(method: MethodSpec) -> MethodSpec:
    """`method` without the files that its training started from: what it became replaces them anyway."""
    if method.lora is not None:
        tokens = method.lora.tokens and _from_scratch(method.lora.tokens)
        lora = method.lora.model_copy(update={"continue_from": None, "tokens": tokens})
        return method.model_copy(update={"lora": lora})
    if method.textual_inversion is not None:
        tokens = _from_scratch(method.textual_inversion.tokens)
        inversion = method.textual_inversion.model_copy(update={"tokens": tokens})
        return method.model_copy(update={"textual_inversion": inversion})
    return method


def _from_scratch(tokens: tuple[TokenSpec, ...]) -> tuple[TokenSpec, ...]:
    return tuple(token.model_copy(update={"initial_embedding_uri": None}) for token in tokens)


def _read(method: Method, fetched: Fetched, family: Family) -> Result:
    """The file with what `method` was trained to, by the kind of what it holds."""
    assert fetched.results is not None
    weights, empty = fetched.results.weights(), method.result()
    if isinstance(empty, AdapterWeights) and weights.adapter is not None:
        return read_adapter(fetched.weights[weights.adapter.path], family)
    if isinstance(empty, Hypernetwork) and weights.hypernetwork is not None:
        return read_hypernetwork(fetched.weights[weights.hypernetwork.path])
    if isinstance(empty, NewWords) and weights.words:
        return NewWords(_words([fetched.weights[file.path] for file in weights.words], family))
    raise DataError(f"RESULT is {fetched.uri}, which lacks a file of what was trained; train anew with --overwrite")


def _words(files: Sequence[Path], family: Family) -> dict[str, dict[str, Tensor]]:
    """Word → text encoder → vectors. Files for models with one text encoder do not name it."""
    only = family.text_encoders[0]
    return {
        word or file.stem: {part or only: rows for part, rows in parts.items()}
        for file in files
        for word, parts in read_words(file).items()
    }
