"""Files of new words (Textual Inversion): one for each, its name the word.

One tensor under the placeholder is what Diffusers, AUTOMATIC1111 and ComfyUI all take for Stable Diffusion 1.x and 2.x;
for SDXL the web UIs want both encoders' vectors in one file, as clip_l and clip_g.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from finetune_trainer.errors import ConfigurationError
from finetune_trainer.exports.kinds import modelspec
from finetune_trainer.exports.legacy_torch import write_legacy
from finetune_trainer.exports.tensors import Dtype, file_name, plain, write_tensors
from finetune_trainer.families.base import Family

XL_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
HEADER = "placeholder"
FIRST_TOKEN = 265
"""Token of `*`, which AUTOMATIC1111 writes beside each embedding and nobody reads."""

Words = Mapping[str, Mapping[str, Tensor]]


def word_tensors(placeholder: str, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The content of a word's file.

    Args:
        vectors: text encoder → [n, width].
    """
    if len(vectors) == 1:
        return {placeholder: next(iter(vectors.values()))}
    return {XL_KEYS[part]: tensor for part, tensor in vectors.items()}


def file_names(placeholders: list[str]) -> dict[str, str]:
    """Placeholder → name of its file without ending, which is the word in web UIs' prompts.

    Raises:
        ConfigurationError: two words would have one file.
    """
    names: dict[str, str] = {}
    for placeholder in placeholders:
        name = file_name(placeholder.strip("<>"))
        for other, taken in names.items():
            if taken == name:
                raise ConfigurationError(
                    f"tokens: the placeholders {other} and {placeholder} would both be published as "
                    f"{name}.safetensors; rename one of them"
                )
        names[placeholder] = name
    return names


def write_words(family: Family, words: Words, folder: Path, dtype: Dtype, pickled: bool) -> None:
    """Writes a .safetensors file for each word, and a .pt beside it when `pickled`.

    Raises:
        ConfigurationError: two words would have one file.
    """
    names = file_names(list(words))
    for placeholder, vectors in words.items():
        tensors = {key: plain(tensor, dtype) for key, tensor in word_tensors(placeholder, vectors).items()}
        name = names[placeholder]
        metadata = {HEADER: placeholder, **modelspec(family, name, "textual-inversion")}
        write_tensors(folder / f"{name}.safetensors", tensors, metadata)
        if pickled:
            write_legacy(folder / f"{name}.pt", pickled_word(name, tensors))


def pickled_word(name: str, tensors: Mapping[str, Tensor]) -> dict[object, object]:
    """What AUTOMATIC1111 itself writes for one text encoder; for two its dict of both."""
    if len(tensors) > 1:
        return dict(tensors)
    return {
        "string_to_token": {"*": FIRST_TOKEN},
        "string_to_param": {"*": next(iter(tensors.values()))},
        "name": name,
        "step": None,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }
