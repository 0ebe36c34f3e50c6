"""One training as `finetune run` does it, in this process: `python -m benchmarks.trainer.ours RUN.json RESULT.json`.

RUN is a FineTuneJob. Everything that `finetune run` does is done: fetching, pictures before and after, report, weights
and manifest. The engine's steps are counted at the place where the scripts' are."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

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
from benchmarks.trainer.watch import Watch, leave


class Counted:
    """An engine whose steps the watch hears of; all else goes to the engine."""

    def __init__(self, engine: Any, watch: Watch) -> None:  # noqa: ANN401 - any Engine, and what it has beside
        self._engine, self._watch = engine, watch

    def step(self, *arguments: Any) -> Any:  # noqa: ANN401 - passed on
        result = self._engine.step(*arguments)
        self._watch.step()
        return result

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - passed on
        return getattr(self._engine, name)


class UntilTrained(Efficiency):
    """Stops the watch as soon as the training is over."""

    def __init__(self, watch: list[Watch]) -> None:
        super().__init__()
        self._watches = watch

    def stage(self, name: Any) -> None:  # noqa: ANN401 - a Stage
        super().stage(name)
        if name == "DrawingAfter":
            for watch in self._watches:
                watch.trained()


def main(run_file: Path, result_file: Path) -> None:
    configure_logging("text")
    watches: list[Watch] = []
    listener = UntilTrained(watches)
    run = load_run(run_file)
    with without_collections():  # as `perform` imports it
        count_steps(watches)
    digest = hashlib.sha256(run.to_json().encode()).hexdigest()
    perform(run, digest, Settings(), Listeners([listener, LogListener()]), Stop(), overwrite=True)
    import torch

    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    (watch,) = watches
    leave(watch.done(device, listener.mfu), result_file)


def count_steps(watches: list[Watch]) -> None:
    """From now on an engine is made with a watch beside it, which is put into `watches`."""
    import torch
    from finetune_trainer.training import loop

    make_engine = loop.make_engine

    def make(*arguments: Any, **named: Any) -> Counted:  # noqa: ANN401 - passed on
        cuda = torch.cuda.is_available()
        watches.append(Watch(WARM_UP, torch.cuda.synchronize if cuda else lambda: None))
        return Counted(make_engine(*arguments, **named), watches[-1])

    loop.make_engine = make


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
