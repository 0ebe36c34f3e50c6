"""What a technique is: what it trains, what it needs alive while it trains, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


class Method(Protocol):
    """One technique. It never asks who executes the steps."""

    needs: Needs

    def install(self, family: Family) -> tuple[ParameterGroup, ...]:
        """Adds what is trained to the family's parts and says what it is. Called once."""

    def result(self) -> AdapterWeights | WholeParts:
        """What is to be exported, live: tensors are shared with the training."""
