"""Micro-batches cut into smaller ones: the same samples with the same noise and weights, fewer at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import pairwise

from finetune_api.training_run import ResolvedTraining
from torch import Tensor, nn

from finetune_trainer.data.samples import Batch, mapped
from finetune_trainer.engines.base import Engine, EngineState, StepResult
from finetune_trainer.methods.base import ParameterGroup

SEEDS = 2**63


def cut(batch: Batch, cuts: int) -> list[Batch]:
    """`batch` in `cuts` pieces, the first ones larger by a sample where it does not go evenly; no more pieces than
    samples. Their weights stay what they are: shares of the whole step's loss. What modules draw themselves, such as
    dropout, is another in each piece."""
    samples = len(batch.timesteps)
    pieces = min(cuts, samples)
    ends = [number * (samples // pieces) + min(number, samples % pieces) for number in range(pieces + 1)]
    return [
        replace(mapped(batch, lambda rows, a=first, b=end: rows[a:b]), seed=(batch.seed + number) % SEEDS)
        for number, (first, end) in enumerate(pairwise(ends))
    ]


class CuttingEngine:
    """Implements Engine: another one, which gets each micro-batch in pieces."""

    def __init__(self, inner: Engine, cuts: int) -> None:
        self._inner, self._cuts = inner, cuts

    def prepare(
        self, module: nn.Module, groups: Sequence[ParameterGroup], spec: ResolvedTraining, example: Sequence[Batch]
    ) -> None:
        # what some engines want to know beforehand
        smaller = {
            "batch_size": -(-spec.batch_size // self._cuts),
            "gradient_accumulation_steps": spec.gradient_accumulation_steps * self._cuts,
        }
        self._inner.prepare(module, groups, spec.model_copy(update=smaller), self._all_cut(example))

    def step(self, batches: Sequence[Batch], factor: float) -> StepResult:
        return self._inner.step(self._all_cut(batches), factor)

    def state(self) -> EngineState:
        return self._inner.state()

    def load(self, state: EngineState | None) -> None:
        self._inner.load(state)

    def averaged(self) -> AbstractContextManager[None]:
        return self._inner.averaged()

    def make_room(self) -> bool:
        return self._inner.make_room()

    def weights(self) -> dict[str, Tensor]:
        return self._inner.weights()

    def settle(self, weights: Mapping[str, Tensor] | None) -> None:
        self._inner.settle(weights)

    def _all_cut(self, batches: Sequence[Batch]) -> list[Batch]:
        return [piece for batch in batches for piece in cut(batch, self._cuts)]
