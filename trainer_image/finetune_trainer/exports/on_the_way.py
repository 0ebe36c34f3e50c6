"""Loadable weights every so many steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from finetune_api import TrainingRun

from finetune_trainer.errors import ConfigurationError, RunError
from finetune_trainer.exports import export_weights
from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import Method
from finetune_trainer.telemetry.listener import Listener
from finetune_trainer.training.duties import Said


class WeightsOnTheWay:
    """Implements Duty: the same files as at the end, as the weights are now."""

    def __init__(
        self,
        run: TrainingRun,
        family: Family,
        methods: Sequence[Method],
        every: int,
        folder: Path,
        publish: Callable[[int, Path, Sequence[Path]], None],
        listener: Listener,
    ) -> None:
        """
        Args:
            methods: the techniques that the training installs into `family`.
            every: steps from one to the next.
            folder: scratch.
            publish: gets the step, a folder and the files in it, relative to it; they are removed afterwards.
        """
        self.every = every
        self._run, self._family, self._methods = run, family, methods
        self._folder, self._publish, self._listener = folder, publish, listener

    def __call__(self, step: int) -> Said:
        """The last step's are published as the result, not here, unless it is one of the others.

        Raises:
            ConfigurationError: the store refuses.
        """
        if step % self.every == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
            files = export_weights(self._run, self._family, [one.result() for one in self._methods], self._folder)
            try:
                self._publish(step, self._folder, [path.relative_to(self._folder) for path in files])
            except ConfigurationError:
                raise
            except RunError as error:
                # a store that fails for a moment must not end the training
                self._listener.message(f"The weights of step {step} were not uploaded: {error}")
            shutil.rmtree(self._folder)
        return Said()

    def state(self) -> Mapping[str, object]:
        return {}

    def load(self, state: Mapping[str, object]) -> None:
        """Nothing to remember."""
