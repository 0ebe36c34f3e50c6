"""What a technique is: what it trains, what it needs alive while it trains, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from finetune_trainer.families.base import Family


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate."""

    name: str
    parameters: Mapping[str, nn.Parameter]
    """By a name that is unique in the whole training and the same in each process and attempt."""
    learning_rate: float | None = None
    """None: the training's."""
    weight_decay: float | None = None
    """None: the optimizer's."""
    constraint: Callable[[Tensor], None] | None = None
    """Applied in place, without gradients, after each optimizer step: to each parameter, and to its average."""


@dataclass(frozen=True)
class Needs:
    """Parts that must run in each step because they change. What is not needed alive is computed once and cached."""

    live_text_encoder: bool = False
    live_vae: bool = False


@dataclass(frozen=True)
class AdapterWeights:
    """A result that is loaded on top of the base model."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    """Part of the family → key within the part → tensor."""
    config: Mapping[str, Mapping[str, object]]
    """Part → what a loader must know beside the tensors (rank, alpha, layers)."""


@dataclass(frozen=True)
class WholeParts:
    """A result that replaces parts of the base model."""

    parts: tuple[str, ...]


@dataclass(frozen=True)
class NewWords:
    """Words that stand for new vectors."""

    words: Mapping[str, Mapping[str, Tensor]]
    """Placeholder → text encoder → float32 [n, width]."""


@dataclass(frozen=True)
class Hypernetwork:
    """Small networks on the inputs of keys and values."""

    layers: Mapping[int, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]
    """Width of the attention's context → state dicts of the networks for keys and for values, as AUTOMATIC1111 names
    them."""
    settings: Mapping[str, object]
    """layer_structure, activation_func, is_layer_norm …, by AUTOMATIC1111's names."""


Result = AdapterWeights | WholeParts | NewWords | Hypernetwork


class Files(Protocol):
    """Files that a technique starts from, fetched."""

    def path(self, uri: str) -> Path:
        """Where the file of `uri` lies."""


class NoFiles:
    """Implements Files where nothing was fetched."""

    def path(self, uri: str) -> Path:
        raise FileNotFoundError(uri)


class Method(Protocol):
    """One technique. It never asks who executes the steps."""

    needs: Needs
    captions: tuple[str, ...]
    """What pictures without a caption of their own are called: one prompt, or templates to draw from."""
    words: tuple[str, ...]
    """New words that are to be learned; `captions` has all of them."""
    own_rates: tuple[float, ...]
    """Learning rates of groups that do not learn at the training's."""

    def check(self, family: Family, files: Files) -> None:
        """Finds what `install` would refuse, and changes nothing: told before hours of drawing.

        Raises:
            ConfigurationError: it does not fit the family.
            DataError: a file to start from cannot be used.
        """

    def install(self, family: Family, files: Files) -> tuple[ParameterGroup, ...]:
        """Adds what is trained to the family's parts and says what it is. Called once.

        Raises:
            ConfigurationError: it does not fit the family.
            DataError: a file to start from cannot be used.
        """

    def result(self) -> Result:
        """What is to be exported, live: tensors are shared with the training."""

    def load(self, result: Result) -> None:
        """Puts what `result` once gave into an installed technique. Raises DataError where it does not fit."""
