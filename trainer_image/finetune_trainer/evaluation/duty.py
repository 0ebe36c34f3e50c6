"""What is done with pictures on the way: judging them, or only keeping some for the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from finetune_api.outputs import JudgementSpec

from finetune_trainer.evaluation.best import JudgedStep, best_of, gives_up
from finetune_trainer.evaluation.budget import Budget
from finetune_trainer.evaluation.intervals import Figure
from finetune_trainer.evaluation.judge import Judge, Look
from finetune_trainer.evaluation.snapshots import Snapshots
from finetune_trainer.telemetry.listener import JudgementReport, Listener
from finetune_trainer.training.duties import Said

LookNow = Callable[[], Look]
"""Draws with the model as it is now. Raises Interrupted where it is to stop."""


class JudgementDuty:
    """Implements Duty: draw, judge, tell, and say whether these weights are the best so far.

    Where the best weights are kept or the training may end early, what is trained depends on every judgement: then
    none is left out, or a run that was interrupted would end with other weights than one that was not. Elsewhere
    judging takes at most a tenth of the time of training, and says what it leaves out. The weights that a run ends
    with are always judged, by whoever finishes it.
    """

    def __init__(
        self,
        spec: JudgementSpec,
        judge: Judge,
        base: Look,
        look: LookNow,
        listener: Listener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            spec: with everySteps.
            base: the base model's look at the same prompts and seeds.
        """
        assert spec.every_steps is not None, "without it nothing is judged on the way"
        self.every = spec.every_steps
        self.history: list[JudgedStep] = []
        self.snapshots = Snapshots()
        self.budget = Budget(clock)
        self.looks: dict[int, Look] = {}
        """Of the latest and of the best step, as far as this attempt judged them."""
        self._spec, self._judge, self._base, self._look = spec, judge, base, look
        self._listener, self._clock = listener, clock

    @property
    def best(self) -> JudgedStep | None:
        """The best judged step so far."""
        return best_of(self.history, self._spec.max_leak)

    def __call__(self, step: int) -> Said:
        """Judges the model as it is after `step`. A step that was judged is not drawn again."""
        if step not in [one.step for one in self.history]:
            if not self._decides and not self.budget.affords():
                self._listener.message(
                    f"The judgement of step {step} is left out: so far judging took {self.budget.share:.0%} of the "
                    "time of training, and another would take it above 10%"
                )
                return Said()
            self._judge_now(step)
        best = self.best
        better = self._spec.keep_best and best is not None and best.step == step
        stop = gives_up(self.history, self._spec.max_leak, self._spec.patience)
        if stop and best is not None:
            self._listener.message(
                f"Ends at step {step}: the last {self._spec.patience} judgements found nothing better than step "
                f"{best.step}"
            )
        return Said(better=better, stop=stop)

    def state(self) -> dict[str, Any]:
        """JSON for a checkpoint."""
        history = [
            {"step": one.step, "figures": {name: asdict(figure) for name, figure in one.figures.items()}}
            for one in self.history
        ]
        return {"history": history, "snapshots": self.snapshots.state(), "budget": self.budget.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`."""
        self.history = [
            JudgedStep(one["step"], {name: Figure(**figure) for name, figure in one["figures"].items()})
            for one in state["history"]
        ]
        self.snapshots.load(state["snapshots"])
        self.budget.load(state["budget"])
        if self.history:
            self._tell(0.0)

    @property
    def _decides(self) -> bool:
        """Whether the weights that the run ends with depend on the judgements."""
        return self._spec.keep_best or self._spec.patience is not None

    def _judge_now(self, step: int) -> None:
        began = self._clock()
        look = self._look()
        figures = self._judge.figures(self._base, look)
        seconds = self._clock() - began
        self.budget.charge(seconds)
        self.snapshots.add(step, look.rows)
        self.history.append(JudgedStep(step, figures))
        best = self.best
        wanted = {step, best.step if best is not None else step}
        self.looks = {at: kept for at, kept in {**self.looks, step: look}.items() if at in wanted}
        self._tell(seconds)

    def _tell(self, seconds: float) -> None:
        best, latest = self.best, self.history[-1]
        values = {name: figure.value for name, figure in latest.figures.items()}
        self._listener.judged(JudgementReport(latest.step, values, best.step if best is not None else None, seconds))


class PicturesDuty:
    """Implements Duty: draws a few pictures for the report, and judges nothing."""

    def __init__(
        self, every: int, look: LookNow, listener: Listener, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.every = every
        self.snapshots = Snapshots()
        self._look, self._listener, self._clock = look, listener, clock

    def __call__(self, step: int) -> Said:
        """Draws with the model as it is after `step`."""
        began = self._clock()
        self.snapshots.add(step, self._look().rows)
        self._listener.spent("drawing", self._clock() - began)
        return Said()

    def state(self) -> dict[str, Any]:
        """JSON for a checkpoint."""
        return {"snapshots": self.snapshots.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`."""
        self.snapshots.load(state["snapshots"])
