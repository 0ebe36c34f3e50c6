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
        ConfigurationError: two jobs have one name, or `only` names none of them.
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
    return [_trial(run, run.training.seed + n, folder) for n in range(seeds) for run in chosen]


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
