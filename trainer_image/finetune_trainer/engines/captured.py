"""The whole step at once: forward, backward, clipping, optimizer and averages, recorded for each shape of batches.

The host's part of a step is to copy the batch and the learning rate to where the recording reads them, and one call.
Whether a step is finite, how far the averages are, what the loss is multiplied by: all of it is decided on the device.

With gradient accumulation there is a recording of one micro-batch for each shape, and one of what follows the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from finetune_api.training_run import ResolvedTraining
from torch import Tensor, nn

from finetune_trainer.data.samples import Batch
from finetune_trainer.engines.base import EngineState, StepResult
from finetune_trainer.engines.dropout import drops
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.engines.recording import Recorder, Work, being_recorded, recorder_for
from finetune_trainer.engines.static_batches import Signature, place_for, put, signature_of
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.methods.base import ParameterGroup

REHEARSALS = 3
"""Times that work is done before it is recorded. Libraries choose their algorithms and reserve memory meanwhile."""


def not_capturable(spec: ResolvedTraining, module: nn.Module) -> str | None:
    """Why steps of `module` by `spec` cannot be recorded, with a remedy; None where they can."""
    if spec.optimizer.name in ("Adafactor", "Prodigy"):
        return (
            f"training.optimizer.name is {spec.optimizer.name}, which counts on the host in each step; use AdamW or "
            "AdamW8bit, or engine.kind Eager"
        )
    if spec.gradient_checkpointing and drops(module):
        return (
            "training.gradientCheckpointing is true together with dropout, and computing the same again asks for the "
            "state of the random generators in the middle of each step; use false, or no dropout, or engine.kind Eager"
        )
    return None


class CapturedEngine(EagerEngine):
    """Implements Engine. What is recorded is the reference's own step; only the learning rate is a number on the
    device, float32 where the reference's has the precision of Python."""

    def __init__(self, device: torch.device, recorder: Recorder | None = None) -> None:
        super().__init__(device)
        self._recorder = recorder_for(device) if recorder is None else recorder

    def prepare(
        self, module: nn.Module, groups: Sequence[ParameterGroup], spec: ResolvedTraining, example: Sequence[Batch]
    ) -> None:
        reason = not_capturable(spec, module)
        if reason is not None:
            raise ConfigurationError(f"engine.kind Captured: {reason}")
        super().prepare(module, groups, spec, example)
        scalar = partial(torch.zeros, (), device=self._device)
        for group in self._optimizer.param_groups:
            group["lr"] = scalar()
            if "capturable" in group:
                group["capturable"] = self._device.type == "cuda"
        self._idle = scalar(dtype=torch.bool)
        """True while work is rehearsed: all is computed, and nothing changes."""
        self._total = scalar()
        """Loss of the micro-batches of this step so far."""
        self._told = torch.zeros(3, device=self._device)
        """Of the step: loss, length of the gradient, and 1 where it was skipped."""
        self._accumulates = spec.gradient_accumulation_steps > 1
        self._clear_gradients()
        self._recordings: dict[Signature | None, tuple[Batch | None, Work]] = {}
        """By the batches' signature: where the batch is read, and what is done with it; None is what follows the last
        micro-batch."""
        self._make_optimizer_state()

    def step(self, batches: Sequence[Batch], factor: float) -> StepResult:
        # all first: a rehearsal between two micro-batches would take part of the step with it
        for batch in batches:
            if signature_of(batch) not in self._recordings:
                with being_recorded():
                    self._record(batch)
        rate = self._set_rates(factor)
        for batch in batches:
            place, work = self._recordings[signature_of(batch)]
            assert place is not None
            put(batch, place)
            with self._seeded(batch.seed):
                work()
        if self._accumulates:
            self._recordings[None][1]()
        # a copy: the next step writes over it, and may have to before this one is read
        loss, norm, skipped = self._told.clone()
        return StepResult(loss, norm, skipped > 0, rate)

    def load(self, state: EngineState | None) -> None:
        super().load(state)
        # the optimizer's state is elsewhere now
        self._recordings.clear()

    def make_room(self) -> bool:
        had = bool(self._recordings)
        self._recordings.clear()
        self._recorder.make_room()
        return had

    def _record(self, batch: Batch) -> None:
        place = place_for(batch, self._device)
        put(batch, place)
        work = partial(self._micro_batch if self._accumulates else self._whole, place)
        with self._seeded(0), self._leaving_no_trace():
            with self._recorder.rehearsing():
                for _ in range(REHEARSALS):
                    work()
                    if self._accumulates:
                        self._end()
            self._recordings[signature_of(batch)] = (place, self._recorder.record(work))
            if self._accumulates and None not in self._recordings:
                self._recordings[None] = (None, self._recorder.record(self._end))

    def _make_optimizer_state(self) -> None:
        """Before there are activations: what came to lie among them would keep their memory in pieces for ever."""
        with self._leaving_no_trace():
            for parameter in self._parameters.values():
                parameter.grad = torch.zeros_like(parameter)
            self._update(self._total)

    @contextmanager
    def _leaving_no_trace(self) -> Iterator[None]:
        """Within, work is done as in a step, and changes nothing. Before the first micro-batch of a step."""
        scale = self._loss_scale.state() if self._loss_scale is not None else None
        self._idle.fill_(True)
        try:
            yield
        finally:
            self._idle.fill_(False)
            self._clear_gradients()
            self._total.zero_()
            if self._loss_scale is not None and scale is not None:
                self._loss_scale.load(scale)

    def _whole(self, batch: Batch) -> None:
        self._tell(self._pass(self._module, batch, 1))

    def _micro_batch(self, batch: Batch) -> None:
        self._total += self._pass(self._module, batch, 1)

    def _end(self) -> None:
        self._tell(self._total)
        self._total.zero_()

    def _tell(self, total: Tensor) -> None:
        norm, skipped = self._update(total)
        self._told.copy_(torch.stack([total, norm, skipped.float()]))

    def _set_rates(self, factor: float) -> float:
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"].fill_(rate * factor)
        return self._rates[0] * factor

    def _is_bad(self, total: Tensor, norm: Tensor) -> Tensor:
        return super()._is_bad(total, norm) | self._idle

    def _clear_gradients(self) -> None:
        if not self._accumulates:
            # what one recording computes, nobody else needs: its memory is free again at its end
            super()._clear_gradients()
            return
        for parameter in self._parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad.zero_()
