"""Whether the matrices of a file belong to the layers, the rank and the kind that a run trains: pure decisions."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import cast

from finetune_trainer.errors import DataError
from finetune_trainer.methods.base import AdapterWeights

SHOWN = 3
"""Layers named in a message."""


def scale_of(config: Mapping[str, object], key: str = "") -> float:
    """What the product of the matrices is multiplied by: alpha / rank, or alpha / √rank with the rank-stabilised scale.

    Args:
        config: of a part of AdapterWeights; `alpha_pattern` and `rank_pattern` (module → value) come before
            `lora_alpha` and `r`, as in PEFT.
        key: of the tensor whose module it is asked for.
    """
    module = _layer(key)
    alpha = cast(Mapping[str, float], config.get("alpha_pattern") or {}).get(module, config["lora_alpha"])
    rank = cast(Mapping[str, float], config.get("rank_pattern") or {}).get(module, config["r"])
    return float(cast(float, alpha)) / divisor(cast(int, rank), bool(config.get("use_rslora")))


def divisor(rank: int, stabilised: bool) -> float:
    """What alpha is divided by: the rank, or its root with the rank-stabilised scale."""
    return math.sqrt(rank) if stabilised else float(rank)


def check_fits(given: AdapterWeights, source: str, own: AdapterWeights) -> None:
    """Compares what a file holds with what a run trains. The scale may differ.

    Args:
        given: the file's.
        source: what to call the file in messages.
        own: the run's; of its tensors only the shapes are looked at.

    Raises:
        DataError: says which part, kind, layer, rank or size differs, and what to change.
    """
    for part in sorted(own.tensors.keys() - given.tensors.keys()):
        remedy = "set method.lora.trainTextEncoder: false" if part.startswith("text_encoder") else "give another file"
        raise DataError(f"{source} has nothing for the {part}; {remedy}")
    for part in sorted(given.tensors.keys() - own.tensors.keys()):
        raise DataError(f"{source} has matrices for the {part} too; set method.lora.trainTextEncoder: true")
    for part, tensors in own.tensors.items():
        _check_kind(part, given.tensors[part].keys(), tensors.keys(), source)
        _check_layers(part, given.tensors[part].keys(), tensors.keys(), source)
        for key in tensors:
            _check_shape(part, key, tuple(given.tensors[part][key].shape), tuple(tensors[key].shape), source)


def _check_kind(part: str, given: Collection[str], own: Collection[str], source: str) -> None:
    has, needs = (any("lora_magnitude_vector" in key for key in keys) for keys in (given, own))
    if has and not needs:
        raise DataError(f"{source} is a DoRA: it has magnitudes for the {part}; set method.lora.useDora: true")
    if needs and not has:
        raise DataError(f"{source} is no DoRA: it has no magnitudes for the {part}; set method.lora.useDora: false")


def _check_layers(part: str, given: Collection[str], own: Collection[str], source: str) -> None:
    has, needs = {_layer(key) for key in given}, {_layer(key) for key in own}
    for layers, what in ((needs - has, "has nothing for"), (has - needs, "has matrices too for")):
        if layers:
            raise DataError(
                f"{source} {what} {_some(sorted(layers))} of the {part}; set method.lora.targets to the kinds of "
                "layers that it was trained with, or give another file"
            )
    incomplete = sorted(set(own) ^ set(given))
    if incomplete:
        raise DataError(f"{source} is not whole: it should have the same tensors for each layer, see {incomplete[0]}")


def _check_shape(part: str, key: str, given: tuple[int, ...], own: tuple[int, ...], source: str) -> None:
    if given == own:
        return
    # A is [rank, in, …] and B [out, rank, …]
    side = 0 if ".lora_A." in key else 1
    if ".lora_" in key and "magnitude" not in key and len(given) == len(own) and given[side] != own[side]:
        raise DataError(
            f"{source} has rank {given[side]} at {part}.{_layer(key)}, and method.lora.rank is {own[side]}; "
            f"set rank: {given[side]}"
        )
    raise DataError(
        f"{source} belongs to another model: {part}.{key} is {size_of(given)} there and {size_of(own)} here; "
        "give a file made with a model of this kind"
    )


def _layer(key: str) -> str:
    return key.partition(".lora_")[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more layers" if len(names) > SHOWN else "")


def size_of(shape: Iterable[int]) -> str:
    """A tensor's shape for people."""
    return " × ".join(str(side) for side in shape) or "a single number"
