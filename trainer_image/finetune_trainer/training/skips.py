"""Steps that changed nothing, because their loss or gradient was not finite: counted, told, and not for ever."""

from __future__ import annotations

from finetune_trainer.engines import NonFiniteLoss
from finetune_trainer.engines.precision import Precision

TOLD = 3
"""Of these each is told; afterwards the second, fourth, eighth …, so that a log stays readable."""
MOST_IN_A_ROW = {"fp32": 3, "bf16": 3, "fp16": 10}
"""With fp16 some are as it should be: the factor of the loss begins too large, and is tried larger now and then."""


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
        precision = "bf16 or fp32" if self._precision == "fp16" else "fp32"
        if self.count == step:
            return (
                f"{found}, before any weight was changed: the base model does not stand this precision, or its weights "
                f"are damaged; use training.precision {precision}, or another baseModel"
            )
        return (
            f"{found}: the training diverged, and would again; use a smaller training.learningRate, or "
            f"training.precision {precision}"
        )
