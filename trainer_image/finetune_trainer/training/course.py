"""How far a training has come: what a checkpoint holds beside the engine's state, when one is made, and where an
attempt goes on."""

from __future__ import annotations

import time
from concurrent.futures import Future
from functools import partial

import torch
from finetune_api.training_run import ResolvedCheckpoints
from torch import nn

from finetune_trainer.background import Background
from finetune_trainer.checkpoints import Best, Checkpoints, TrainingState
from finetune_trainer.engines import Engine
from finetune_trainer.engines.copies import Snapshot
from finetune_trainer.errors import ConfigurationError, RunError
from finetune_trainer.group.team import Team
from finetune_trainer.telemetry.listener import Listener
from finetune_trainer.training.duties import Heard, Roster
from finetune_trainer.training.history import History, Past


class Course:
    """One process's view of it; all processes of a group have the same, but for what rank 0 alone keeps.

    A checkpoint is copied at a step's boundary and stored in the background. At most one is on its way: another that
    falls due meanwhile is made at the first boundary at which that one is done, of the state as it is then.
    """

    def __init__(
        self,
        engine: Engine,
        module: nn.Module,
        *,
        device: torch.device,
        roster: Roster,
        history: History,
        checkpoints: Checkpoints | None,
        often: ResolvedCheckpoints,
        digests: dict[str, str],
        listener: Listener,
        team: Team,
        background: Background,
    ) -> None:
        """
        Args:
            engine: prepared with `module`, on `device`.
            history: hears of each step elsewhere.
            checkpoints: None in all processes of a group but rank 0.
            often: when checkpoints are made.
            digests: of what is trained on.
            background: where they are stored.
        """
        self._engine, self._module, self._device, self._roster = engine, module, device, roster
        self._history, self._team, self._background = history, team, background
        self._checkpoints, self._often, self._digests, self._listener = checkpoints, often, digests, listener
        self.best: Best | None = None
        """Its weights are rank 0's alone; the others have none."""
        self.ended = False
        """A duty said that more steps would not help."""
        self.interrupted = False
        """A duty could not be finished: this process is to stop."""
        self.saved_step = 0
        """Step of the newest checkpoint that another attempt can go on from."""
        self._saved_at = time.monotonic()
        self._due = False
        self._on_its_way = False
        self._changes = self._saved_changes = 0
        """Steps and duties since the attempt began, now and in the newest checkpoint."""

    @property
    def step(self) -> int:
        """Optimizer steps done, or given to the device."""
        return self._history.step

    def resume(self) -> int | None:
        """Puts back the newest checkpoint; its step, or None where the training starts anew. What the attempt before
        was stopped in the middle of is not done yet: `attend` does it."""
        _compare(self._digests, self._team)
        # this process may have tried before, and what that try gave is the newest
        self._background.finish()
        found = _found(self._checkpoints, self._digests, self._listener)
        told = None
        if found is not None:
            best = None if found.best is None else Best(found.best.step, {})
            past = Past(found.losses, found.learning_rates, found.skipped, found.skipped_in_a_row)
            told = (past, best, found.ended)
        told = self._team.share(told)
        if told is None:
            return None
        past, self.best, self.ended = told
        self._history.load(past)
        self._engine.load(found.engine if found is not None else None)
        self._roster.load(found.duties if found is not None else ())
        if found is not None:
            self.best = found.best
        self.saved_step, self._saved_at = self.step, time.monotonic()
        return self.step

    @property
    def has_duties(self) -> bool:
        """Whether `attend` has anything to do now."""
        return self._roster.is_due(self.step)

    def attend(self) -> None:
        """Carries out the duties that are due now, with the averaged weights where there are any, and keeps a copy
        of the weights when they are the best so far."""
        if not self.has_duties:
            return
        self._history.settle()
        # what is killed in the middle of a long duty loses no steps that should have been saved by then
        if self._agreed(self._is_late and not self._on_its_way):
            self._save()
        self._module.eval()
        heard = self._heard_in_the_room_there_is() or self._heard()
        self._module.train()
        self.ended, self.interrupted = self.ended or heard.stop, heard.interrupted
        self._changes += 1

    def _heard_in_the_room_there_is(self) -> Heard | None:
        """None where the GPU's memory did not suffice, and the engine has given back some: once more, then."""
        try:
            return self._heard()
        except torch.OutOfMemoryError:
            # in a group the others are waiting where a second try would not come by
            if self._team.size > 1 or not self._engine.make_room():
                raise
        self._listener.message(
            f"After step {self.step} the GPU's memory did not suffice beside the recorded steps; once more without "
            "them, and they are recorded anew."
        )
        return None

    def _heard(self) -> Heard:
        with self._engine.averaged():
            heard = self._roster.attend(self.step)
            if heard.better:
                weights = self._engine.weights()
                self.best = Best(self.step, weights if self._team.leads else {})
        return heard

    def pass_boundary(self) -> None:
        """After each step: hears what the background has done, and begins a checkpoint when one is due.

        Raises:
            ConfigurationError, OSError: an earlier checkpoint could not be stored, and none ever will.
        """
        self._changes += 1
        self._background.hear()
        every = self._often.every_steps
        self._due = self._due or self._is_late or bool(every and self.step % every == 0)
        if self._agreed(self._due and not self._on_its_way):
            self._save()

    def finish(self) -> None:
        """Waits for all that is on its way, and stores what happened since. Raises as `pass_boundary` does."""
        self._history.settle()
        self._background.finish()
        # the checkpoint that was on its way may have all of it
        if self._agreed(self._changes != self._saved_changes):
            self._save()
            self._background.finish()

    def settle(self) -> None:
        """The training is over: leaves the best weights, or the averaged ones, in the module, for drawing and
        export."""
        self._module.eval()
        self._engine.settle(self.best.weights if self.best is not None and self._team.leads else None)

    @property
    def _is_late(self) -> bool:
        return time.monotonic() - self._saved_at >= self._often.every_seconds

    def _agreed(self, wanted: bool) -> bool:
        """What rank 0 wants: an engine's state may be in all processes, which then give it together."""
        return self._team.any(wanted and self._checkpoints is not None)

    def _save(self) -> None:
        """Copies the state, and has it stored. Failing to is told, and costs no more than the steps since the last
        checkpoint."""
        began = time.monotonic()
        self._due, self._saved_at = False, began
        with Snapshot(self._device) as snapshot:
            engine = self._engine.state()
        if self._checkpoints is None:
            return
        store, step, past = self._checkpoints, self.step, self._history.frozen()
        duties, best, ended, digests = tuple(self._roster.state()), self.best, self.ended, self._digests

        def carry_out() -> float:
            snapshot.wait()
            known = past()
            store.save(
                step,
                TrainingState(
                    step=step,
                    engine=engine,
                    losses=known.losses,
                    learning_rates=known.learning_rates,
                    digests=digests,
                    duties=duties,
                    best=best,
                    ended=ended,
                    skipped=known.skipped,
                    skipped_in_a_row=known.skipped_in_a_row,
                ),
            )
            return time.monotonic()

        self._on_its_way = True
        self._background.submit(carry_out, partial(self._stored, step, self._changes, began))
        self._listener.spent("checkpoint", time.monotonic() - began)

    def _stored(self, step: int, changes: int, began: float, ended: Future[float]) -> None:
        self._on_its_way = False
        try:
            seconds = ended.result() - began
        except ConfigurationError:
            raise
        except RunError as error:
            # it stands on this machine; a store that fails for a moment must not end the training
            self._listener.message(f"The checkpoint of step {step} was not uploaded: {error}")
            return
        self.saved_step, self._saved_changes = step, changes
        self._listener.checkpoint(step, seconds)


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
