"""How far a training has come: what a checkpoint holds beside the engine's state, when one is made, and where an
attempt goes on."""

from __future__ import annotations

import math
import time

from finetune_api.training_run import ResolvedCheckpoints
from torch import nn

from finetune_trainer.checkpoints import Best, Checkpoints, TrainingState
from finetune_trainer.engines import Engine
from finetune_trainer.errors import ConfigurationError, RunError
from finetune_trainer.group.team import Team
from finetune_trainer.telemetry.listener import Listener
from finetune_trainer.training.duties import Roster
from finetune_trainer.training.skips import Skips

LOSS_WINDOW = 20


class Course:
    """One process's view of it; all processes of a group have the same, but for what rank 0 alone keeps."""

    def __init__(
        self,
        engine: Engine,
        module: nn.Module,
        roster: Roster,
        checkpoints: Checkpoints | None,
        often: ResolvedCheckpoints,
        digests: dict[str, str],
        listener: Listener,
        team: Team,
        skips: Skips,
    ) -> None:
        """
        Args:
            engine: prepared with `module`.
            checkpoints: None in all processes of a group but rank 0.
            often: when checkpoints are made.
            digests: of what is trained on.
            skips: hear of each step elsewhere.
        """
        self._engine, self._module, self._roster, self._team = engine, module, roster, team
        self._checkpoints, self._often, self._digests, self._listener = checkpoints, often, digests, listener
        self._skips = skips
        self.losses: list[float] = []
        """Of each step from the first one on, earlier attempts included."""
        self.learning_rates: list[float] = []
        """As losses; an optimizer may find them out itself, and so no function of the step gives them."""
        self.best: Best | None = None
        """Its weights are rank 0's alone; the others have none."""
        self.ended = False
        """A duty said that more steps would not help."""
        self.interrupted = False
        """A duty could not be finished: this process is to stop."""
        self.saved_step = 0
        """Step of the newest checkpoint that another attempt can go on from."""
        self._saved_at = time.monotonic()
        self._unsaved = False

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return len(self.losses)

    @property
    def loss(self) -> float:
        """Mean over the last steps, those without a finite one left out."""
        window = [loss for loss in self.losses[-LOSS_WINDOW:] if math.isfinite(loss)]
        return sum(window) / len(window) if window else 0.0

    def resume(self) -> int | None:
        """Puts back the newest checkpoint; its step, or None where the training starts anew. What the attempt before
        was stopped in the middle of is not done yet: `attend` does it."""
        _compare(self._digests, self._team)
        found = _found(self._checkpoints, self._digests, self._listener)
        told = None
        if found is not None:
            best = None if found.best is None else Best(found.best.step, {})
            skipped = (found.skipped, found.skipped_in_a_row)
            told = (list(found.losses), list(found.learning_rates), best, found.ended, skipped)
        told = self._team.share(told)
        if told is None:
            return None
        self.losses, self.learning_rates, self.best, self.ended, (self._skips.count, self._skips.in_a_row) = told
        self._engine.load(found.engine if found is not None else None)
        self._roster.load(found.duties if found is not None else ())
        if found is not None:
            self.best = found.best
        self.saved_step, self._saved_at = self.step, time.monotonic()
        return self.step

    def advance(self, loss: float, learning_rate: float) -> None:
        """One more step is done."""
        self.losses.append(loss)
        self.learning_rates.append(learning_rate)
        self._unsaved = True

    def attend(self) -> None:
        """Carries out the duties that are due now, with the averaged weights where there are any, and keeps a copy
        of the weights when they are the best so far."""
        if not self._roster.is_due(self.step):
            return
        # what is killed in the middle of a long duty loses no steps that should have been saved by then
        if self._is_late:
            self.save()
        self._module.eval()
        with self._engine.averaged():
            heard = self._roster.attend(self.step)
            if heard.better:
                self.best = Best(self.step, self._engine.weights() if self._team.leads else {})
        self._module.train()
        self.ended, self.interrupted, self._unsaved = self.ended or heard.stop, heard.interrupted, True

    def save_on_time(self) -> None:
        """Saves when a checkpoint is due."""
        every = self._often.every_steps
        if self._is_late or (every and self.step % every == 0):
            self.save()

    def save(self) -> None:
        """Saves, unless nothing happened since. Failing to is told, and costs no more than the steps since the last
        checkpoint."""
        if self._checkpoints is None or not self._unsaved:
            return
        began = time.monotonic()
        duties = tuple(self._roster.state())
        state = TrainingState(
            self.step,
            self._engine.state(),
            tuple(self.losses),
            tuple(self.learning_rates),
            self._digests,
            duties,
            self.best,
            self.ended,
            self._skips.count,
            self._skips.in_a_row,
        )
        saved = _save(self._checkpoints, state, self._listener)
        self._saved_at = time.monotonic()
        if saved:
            self.saved_step, self._unsaved = self.step, False
            self._listener.checkpoint(self.step, self._saved_at - began)

    @property
    def _is_late(self) -> bool:
        return time.monotonic() - self._saved_at >= self._often.every_seconds

    def settle(self) -> None:
        """The training is over: leaves the best weights, or the averaged ones, in the module, for drawing and
        export."""
        self._module.eval()
        self._engine.settle(self.best.weights if self.best is not None and self._team.leads else None)


def _compare(digests: dict[str, str], team: Team) -> None:
    leaders = team.share(digests)
    changed = sorted(name for name in digests if digests[name] != leaders[name])
    if changed:
        raise RunError(f"the processes of the group fetched different things ({', '.join(changed)}); was one replaced?")


def _found(checkpoints: Checkpoints | None, digests: dict[str, str], listener: Listener) -> TrainingState | None:
    found = checkpoints.latest() if checkpoints is not None else None
    if found is None or checkpoints is None:
        return None
    step, state = found
    changed = sorted(name for name in digests if state.digests.get(name) != digests[name])
    if changed:
        listener.message(f"The checkpoint of step {step} is not used: {', '.join(changed)} changed since.")
        # or they, being ahead, would push out the new ones
        checkpoints.clear()
        return None
    return state


def _save(checkpoints: Checkpoints, state: TrainingState, listener: Listener) -> bool:
    """Whether another attempt can go on from it."""
    try:
        checkpoints.save(state.step, state)
    except ConfigurationError:
        raise
    except RunError as error:
        # it stands on this machine; a store that fails for a moment must not end the training
        listener.message(f"The checkpoint of step {state.step} was not uploaded: {error}")
        return False
    return True
