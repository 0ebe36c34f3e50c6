"""Loadable weights every so many steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from finetune_api import TrainingRun

from finetune_trainer.background import Background
from finetune_trainer.errors import ConfigurationError, RunError
from finetune_trainer.exports import copied_weights
from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import Method
from finetune_trainer.telemetry.listener import Listener
from finetune_trainer.training.duties import Said

MOST_ON_THEIR_WAY = 2
"""Each takes as much memory as what was trained, and whole models are large."""


class WeightsOnTheWay:
    """Implements Duty: the same files as at the end, as the weights are now. They are copied while the training waits,
    and written and published in the background. Where the store cannot keep up, steps are left out and told."""

    def __init__(
        self,
        run: TrainingRun,
        family: Family,
        methods: Sequence[Method],
        every: int,
        folder: Path,
        publish: Callable[[int, Path, Sequence[Path]], None],
        listener: Listener,
        background: Background,
    ) -> None:
        """
        Args:
            methods: the techniques that the training installs into `family`.
            every: steps from one to the next.
            folder: scratch.
            publish: gets the step, a folder and the files in it, relative to it; they are removed afterwards. Called in
                the background.
            background: where they are written and published.
        """
        self.every = every
        self._run, self._family, self._methods = run, family, methods
        self._folder, self._publish, self._listener = folder, publish, listener
        self._background = background
        self._coming: list[int] = []

    def __call__(self, step: int) -> Said:
        """The last step's are published as the result, not here, unless it is one of the others.

        Raises:
            ConfigurationError: a format cannot hold what was trained.
        """
        if step % self.every != 0:
            return Said()
        if len(self._coming) == MOST_ON_THEIR_WAY:
            earlier = " and ".join(map(str, self._coming))
            self._listener.message(
                f"The weights of step {step} are left out: those of the steps {earlier} are still on their way to the "
                "store; a larger exports.everySteps suits it better"
            )
            return Said()
        self._coming.append(step)
        write = copied_weights(self._run, self._family, [one.result() for one in self._methods])
        self._background.submit(partial(self._write, step, write), partial(self._heard, step))
        return Said()

    def _write(self, step: int, write: Callable[[Path], list[Path]]) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        try:
            files = write(self._folder)
            self._publish(step, self._folder, [path.relative_to(self._folder) for path in files])
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _heard(self, step: int, ended: Future[None]) -> None:
        self._coming.remove(step)
        try:
            ended.result()
        except ConfigurationError:
            raise
        except RunError as error:
            # a store that fails for a moment must not end the training
            self._listener.message(f"The weights of step {step} were not uploaded: {error}")

    def state(self) -> Mapping[str, object]:
        return {}

    def load(self, state: Mapping[str, object]) -> None:
        """Nothing to remember."""
