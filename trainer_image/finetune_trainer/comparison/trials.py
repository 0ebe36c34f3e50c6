"""Which trainings a comparison consists of: each job of a file with each training seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from finetune_api import TrainingRun
from finetune_api.techniques import TECHNIQUES

from finetune_trainer.comparison.rows import key_of
from finetune_trainer.errors import ConfigurationError

LARGEST_SEED = 2**31 - 1
"""Of training.seed."""


@dataclass(frozen=True)
class Trial:
    """One training."""

    name: str
    """Of the FineTuneJob."""
    seed: int
    run: TrainingRun

    @property
    def label(self) -> str:
        """For people and for files."""
        return f"{self.name}-seed-{self.seed}"

    @property
    def key(self) -> str:
        """As Row.key."""
        return key_of(self.run)


def plan_trials(runs: Sequence[TrainingRun], seeds: int, only: Sequence[str], folder: Path) -> list[Trial]:
    """All trials, seed by seed, so that a comparison that is stopped has as many seeds of each.

    Args:
        runs: one for each job.
        seeds: how many training seeds; the first is the job's own.
        only: names of jobs or techniques; all when empty.
        folder: where the comparison is kept.

    Raises:
        ConfigurationError: two jobs have one name, `only` names none of them, a job wants several processes, or its
            seeds would pass the largest that there is.
    """
    names = [run.identity.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"two jobs are named {twice[0]}; give each a metadata.name of its own")
    known = {*names, *TECHNIQUES}
    for word in only:
        if word not in known:
            raise ConfigurationError(f"--only names {word}, which is no job there; use {', '.join(names)}")
    chosen = [run for run in runs if not only or {run.identity.name, run.method.name} & set(only)]
    if not chosen:
        raise ConfigurationError(f"--only is {','.join(only)}, and no job uses that; use {', '.join(names)}")
    for run in chosen:
        _check(run, seeds)
    return [_trial(run, run.training.seed + n, folder) for n in range(seeds) for run in chosen]


def _check(run: TrainingRun, seeds: int) -> None:
    name, engine, last = run.identity.name, run.engine, run.training.seed + seeds - 1
    if engine.nodes * engine.processes_per_node > 1:
        raise ConfigurationError(
            f"{name}: spec.engine is {engine.nodes} nodes × {engine.processes_per_node} processes, and a comparison "
            "trains in one process, whose time and memory it measures; remove engine.nodes and engine.processesPerNode"
        )
    if last > LARGEST_SEED:
        raise ConfigurationError(
            f"{name}: training.seed is {run.training.seed}, and the last of {seeds} seeds would be {last}, more than "
            f"{LARGEST_SEED}; use {LARGEST_SEED - seeds + 1} at most"
        )


def _trial(run: TrainingRun, seed: int, folder: Path) -> Trial:
    name = run.identity.name
    label = f"{name}-seed-{seed}"
    output = run.output.model_copy(update={"uri": f"file://{quote(str(folder / 'results' / label))}"})
    changed = run.model_copy(
        update={
            "identity": run.identity.model_copy(update={"name": name, "uid": f"compare-{label}"[:64]}),
            "training": run.training.model_copy(update={"seed": seed}),
            "output": output,
        }
    )
    return Trial(name, seed, changed)
