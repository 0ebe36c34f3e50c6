"""Steps that changed nothing, because their loss or gradient was not finite: counted, told, and not for ever."""

from __future__ import annotations

from finetune_trainer.engines import NonFiniteLoss
from finetune_trainer.engines.precision import Precision

TOLD = 3
"""The first ones are told each; afterwards the 4th, 8th, 16th …, so that a log stays readable."""
MOST_IN_A_ROW = {"fp32": 3, "bf16": 3, "fp16": 10}
"""With fp16 some are as it should be: the factor of the loss begins too large, and is tried larger now and then."""

WIDER = {"fp32": "", "bf16": "fp32", "fp16": "bf16 or fp32"}
"""What is left to try."""


class Skips:
    """Their count. Hears of every step once, in order; it may hear late."""

    def __init__(self, precision: Precision, total_steps: int) -> None:
        self._precision, self._total_steps = precision, total_steps
        self.count = 0
        """Since the first step, earlier attempts included."""
        self.in_a_row = 0
        """Just before the next step."""

    def hear(self, step: int, loss: float, grad_norm: float, skipped: bool) -> str | None:
        """Step `step` (1 for the first) is done. A line for people, where one is due.

        Raises:
            NonFiniteLoss: too many in a row.
        """
        if not skipped:
            self.in_a_row = 0
            return None
        self.count += 1
        self.in_a_row += 1
        limit = MOST_IN_A_ROW[self._precision]
        if self.in_a_row >= limit or self.count == self._total_steps:
            raise NonFiniteLoss(self._advice(step, loss, grad_norm))
        # a power of two has one bit
        if self.count > TOLD and self.count & (self.count - 1):
            return None
        return (
            f"Step {step} of {self._total_steps} changed nothing: its loss is {loss:g} and its gradient {grad_norm:g} "
            f"({self.count} such steps so far; {limit} in a row end the training)"
        )

    def _advice(self, step: int, loss: float, grad_norm: float) -> str:
        first = step - self.in_a_row + 1
        steps = f"step {step}" if first == step else f"steps {first} to {step}"
        found = f"{steps} of {self._total_steps}: the loss is {loss:g} and its gradient {grad_norm:g}"
        wider = WIDER[self._precision]
        if self.count == step:
            cause, remedy = "the base model's weights are damaged", "another baseModel"
            if wider:
                cause = "the base model does not stand this precision, or its weights are damaged"
                remedy = f"training.precision {wider}, or {remedy}"
            return f"{found}, before any weight was changed: {cause}; use {remedy}"
        or_wider = f", or training.precision {wider}" if wider else ""
        return f"{found}: the training diverged, and would again; use a smaller training.learningRate{or_wider}"
