"""One training as `finetune run` does it, in this process: `python -m benchmarks.trainer.ours GIVEN.json RESULT.json`.

GIVEN holds the fields of `Given`. Everything that `finetune run` does is done: fetching, pictures before and after,
report, weights and manifest. The engine's steps are counted at the place where the scripts' are."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.importing import without_collections
from finetune_trainer.launch import configure_logging
from finetune_trainer.local_run import load_run
from finetune_trainer.run import perform
from finetune_trainer.settings import Settings
from finetune_trainer.signals import Stop
from finetune_trainer.telemetry.efficiency import Efficiency
from finetune_trainer.telemetry.listener import Listeners
from finetune_trainer.telemetry.logs import LogListener

from benchmarks.trainer.cases import WARM_UP
from benchmarks.trainer.device import held, hold_at_most
from benchmarks.trainer.watch import Watch, leave

if TYPE_CHECKING:  # imports are a part of what is measured
    from finetune_trainer.data.samples import Batch
    from finetune_trainer.engines.base import Engine, StepResult
    from torch import Tensor


@dataclass(frozen=True)
class Given:
    """What to do, in JSON."""

    job: dict[str, Any]
    """A FineTuneJob."""
    steps: int
    """Of it."""
    wait_for_each: bool = False
    """To see what a checkpoint costs."""
    hold_at_most: int = 0
    """Bytes on the GPU; 0 for no limit."""


class Counted:
    """An engine whose steps the watch hears of; all else goes to the engine."""

    def __init__(self, engine: Engine, watch: Watch) -> None:
        self._engine, self._watch = engine, watch
        self._skipped: Tensor | int = 0

    def step(self, batches: Sequence[Batch], factor: float) -> StepResult:
        counts = self._watch.is_warm
        result = self._engine.step(batches, factor)
        if counts:
            # stays on the device: asking it would make the host wait
            self._skipped = self._skipped + result.skipped.float()
        self._watch.step()
        return result

    def skipped(self) -> int:
        """Steps after the warm-up that changed nothing."""
        return int(self._skipped)

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)


class Heard(Efficiency):
    """Tells the watch of checkpoints."""

    def __init__(self, watches: list[Watch]) -> None:
        super().__init__()
        self._watches = watches

    def spent(self, activity: Any, seconds: float) -> None:  # noqa: ANN401 - an Activity
        super().spent(activity, seconds)
        if activity == "checkpoint":
            for watch in self._watches:
                watch.checkpoint()


def main(given_file: Path, result_file: Path) -> None:
    configure_logging("text")
    given = Given(**json.loads(given_file.read_text()))
    job = given_file.with_name("job.json")
    job.write_text(json.dumps(given.job))
    watches: list[Watch] = []
    engines: list[Counted] = []
    listener = Heard(watches)
    run = load_run(job)
    with without_collections():  # as `perform` imports it
        count_steps(given, watches, engines)
    if given.hold_at_most:
        hold_at_most(given.hold_at_most)
    digest = hashlib.sha256(run.to_json().encode()).hexdigest()
    perform(run, digest, Settings(), Listeners([listener, LogListener()]), Stop(), overwrite=True)
    # after memory ran out, everything was made once more, and the last try is the one that counts
    leave(watches[-1].done(held(), listener.mfu, engines[-1].skipped()), result_file)


def count_steps(given: Given, watches: list[Watch], engines: list[Counted]) -> None:
    """From now on an engine is made with a watch beside it, and both are put into the lists."""
    import torch
    from finetune_trainer.training import loop

    make_engine = loop.make_engine

    def make(*arguments: Any, **named: Any) -> Counted:  # noqa: ANN401 - passed on
        synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        watches.append(Watch(WARM_UP, given.steps, synchronize, given.wait_for_each))
        engines.append(Counted(make_engine(*arguments, **named), watches[-1]))
        return engines[-1]

    loop.make_engine = make


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
