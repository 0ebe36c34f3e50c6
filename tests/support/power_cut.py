"""A process that is gone from one moment to the next."""

from __future__ import annotations

from finetune_trainer.telemetry.listener import StepReport

from support.training import Memory


class PowerCut(BaseException):
    """Nothing in the trainer can catch it, as nothing can catch SIGKILL."""


class KillsAt(Memory):
    """Pulls the plug when a step is done, before its duties and before it can be saved."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.fatal_step = step

    def step(self, report: StepReport) -> None:
        super().step(report)
        if report.step == self.fatal_step:
            raise PowerCut
