"""What is lost with weights in bf16: `.venv/bin/python -m benchmarks.trainer.weights` from the root.

Full DreamBooth with prior preservation, as in examples/compare.yaml but longer, a picture and a class picture in a
step, and computed in bf16: once with weights in float32, once in bf16 and rounded by chance, as training.weightsDtype
bf16 has it, and once rounded to the nearest, as nobody should. Same pictures, same draws. What is measured is kept, and
the same command goes on."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from finetune_api import TrainingRun
from finetune_trainer.comparison.measuring import measure
from finetune_trainer.comparison.rows import Row, append_row, by_name, read_rows
from finetune_trainer.comparison.spread import spread
from finetune_trainer.comparison.table import MISSING
from finetune_trainer.comparison.trials import Trial, plan_trials
from finetune_trainer.engines import adamw_8bit
from finetune_trainer.local_run import load_runs
from finetune_trainer.settings import Settings
from finetune_trainer.signals import Stop
from finetune_trainer.telemetry.logs import configure_logging

EXAMPLE, JOB = Path("examples/compare.yaml"), "dreambooth"
NEAREST = "bf16-nearest"
WEIGHTS = {"fp32": "fp32", "bf16": "bf16", NEAREST: "bf16"}
"""Name of a line → training.weightsDtype."""
COLUMNS = {
    "trainingLoss": "loss",
    "classLoss": "class loss",
    "fidelity": "fidelity",
    "promptFidelity": "prompt fidelity",
    "leak": "leak",
    "classAccuracy": "class kept",
    "drift": "drift",
}
"""Judged figure → head. Losses are of the same pictures, timesteps and noise in every line."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer.weights", description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate; the example's is 1e-4")
    parser.add_argument("--seeds", type=int, default=1, help="training seeds")
    parser.add_argument("--out", type=Path, default=Path("runs/weights"), metavar="FOLDER")
    given = parser.parse_args()
    configure_logging("text")
    print(table(measured(runs_of(given.steps, given.rate), given.seeds, given.out.absolute())))


def runs_of(steps: int, rate: float) -> list[TrainingRun]:
    """A training for each line of WEIGHTS."""
    example = next(run for run in load_runs(EXAMPLE) if run.identity.name == JOB)
    optimizer = example.training.optimizer.model_copy(update={"name": "AdamW8bit"})
    changes = {"steps": steps, "batch_size": 1, "learning_rate": rate, "precision": "bf16", "optimizer": optimizer}
    assert example.judgement is not None
    # the last weights alone
    judgement = example.judgement.model_copy(update={"every_steps": None, "patience": None})
    return [
        example.model_copy(
            update={
                "identity": example.identity.model_copy(update={"name": name}),
                "training": example.training.model_copy(update=changes | {"weights_dtype": dtype}),
                "judgement": judgement,
            }
        )
        for name, dtype in WEIGHTS.items()
    ]


def measured(runs: Sequence[TrainingRun], seeds: int, folder: Path) -> list[Row]:
    """One row for each run and seed, in the order of WEIGHTS; measures those that `folder` does not have."""
    folder.mkdir(parents=True, exist_ok=True)
    trials = plan_trials(runs, seeds, (), folder)
    known = {(row.name, row.seed, row.key): row for row in read_rows(folder)}
    for trial in trials:
        if (trial.name, trial.seed, trial.key) not in known:
            print(f"{trial.label}", flush=True)
            row = _measured(trial, folder)
            append_row(folder, row)
            known[trial.name, trial.seed, trial.key] = row
    found = [known[trial.name, trial.seed, trial.key] for trial in trials]
    return [row for name in WEIGHTS for row in found if row.name == name]


def _measured(trial: Trial, folder: Path) -> Row:
    settings = Settings(work_dir=folder / "work" / trial.label, cache_dir=Settings().cache())
    with _rounding_to_the_nearest(trial.name == NEAREST):
        return measure(trial.run, settings, Stop())


@contextmanager
def _rounding_to_the_nearest(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    with patch.object(adamw_8bit, "rounded_by_chance", lambda values, low: values.bfloat16()):
        yield


def table(rows: Sequence[Row]) -> str:
    """In Markdown: mean and, of several seeds, half the 95 % interval."""
    lines = [["weights", "seeds", *COLUMNS.values()], ["---"] * (2 + len(COLUMNS))]
    if rows:
        lines.append(["base model", "", *(_number([rows[0].base], name) for name in COLUMNS)])
    for name, group in by_name(rows).items():
        lines.append([name, str(len(group)), *(_number([row.figures for row in group], one) for one in COLUMNS)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(found: Sequence[Mapping[str, float]], name: str) -> str:
    known = [figures[name] for figures in found if name in figures]
    if not known:
        return MISSING
    values = spread(known)
    return f"{values.mean:.4f}" if values.half is None else f"{values.mean:.4f} ± {values.half:.4f}"


if __name__ == "__main__":
    main()
