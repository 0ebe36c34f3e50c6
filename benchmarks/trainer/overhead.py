"""What our training loop costs beyond the arithmetic: its steps beside a floor, in one run, on builtin://tiny-shapes.

The floor is forward, backward, clipping and AdamW of the same module on one fixed batch. The loop adds samples (noise,
cached latents and text), the finite check, reports, and checkpoints where they fall due. Rounds alternate, so that what
else the machine does falls on both.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
from finetune_api import FineTuneJobSpec, RunIdentity, TrainingRun, resolve
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.engines import make_engine
from finetune_trainer.families import load_family
from finetune_trainer.methods import NoFiles, make_methods
from finetune_trainer.sources.builtin import open_builtin
from finetune_trainer.telemetry.listener import StepReport
from finetune_trainer.training.loop import train
from finetune_trainer.training.making_samples import make_samples
from finetune_trainer.training.step_module import StepModule
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "examples/subjects/figure"
STEPS, ROUNDS, BATCH = 40, 3, 4
TECHNIQUES = {"lora": {"prompt": "a photo of a sks circle"}, "dreamBooth": {"prompt": "a photo of a sks circle"}}


class Silent:
    """A listener that has nothing to say."""

    def stage(self, name: str) -> None: ...
    def begins(self, total_steps: int, resumed_from: int | None) -> None: ...
    def step(self, report: StepReport) -> None: ...
    def checkpoint(self, step: int, seconds: float) -> None: ...
    def judged(self, report: object) -> None: ...
    def work(self, done: int, total: int, what: str) -> None: ...
    def message(self, text: str) -> None: ...


def make_run(technique: str) -> TrainingRun:
    spec = {
        "baseModel": {"uri": "builtin://tiny-shapes"},
        "method": {technique: TECHNIQUES[technique]},
        "dataset": {"uri": f"file://{PICTURES}"},
        "training": {"steps": STEPS, "batchSize": BATCH},
        "output": {"uri": "file:///unused"},
    }
    return resolve(FineTuneJobSpec.model_validate(spec), None, RunIdentity(name="b", namespace="local", uid="b"))


def floor(run: TrainingRun) -> float:
    """Seconds a step of the engine on one batch that never changes."""
    family = load_family(open_builtin(run.base_model.uri), torch.device("cpu"))
    pictures = PictureSet.open(PICTURES)
    (method,) = make_methods(run.method, run.training.seed)
    groups = method.install(family, NoFiles())
    batch = make_samples(run, family, [method], pictures, PictureSet.of([], "class pictures"), None).step(0)
    engine = make_engine(run.engine, family.device)
    engine.prepare(StepModule(family, method.needs, run.training.loss).train(), groups, run.training, batch)
    engine.step(batch, 1.0)
    began = time.perf_counter()
    for _ in range(STEPS):
        engine.step(batch, 1.0)
    return (time.perf_counter() - began) / STEPS


def loop(run: TrainingRun) -> float:
    """Seconds a step of the loop, from the first step's end to the last's."""
    family = load_family(open_builtin(run.base_model.uri), torch.device("cpu"))
    ends: list[float] = []

    class Clock(Silent):
        def step(self, report: StepReport) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), None, "", "benchmark", "one", 1)
        train(run, family, PictureSet.open(PICTURES), [], None, checkpoints, Clock(), lambda: False)
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def main() -> None:
    table = Table(title=f"{STEPS} steps, batch {BATCH}, 64 px, median of {ROUNDS} rounds")
    for column in ("technique", "floor, ms/step", "loop, ms/step", "loop / floor"):
        table.add_column(column, justify="right")
    for technique in TECHNIQUES:
        run = make_run(technique)
        rounds = [(floor(run), loop(run)) for _ in range(ROUNDS)]
        floors, loops = zip(*rounds, strict=True)
        ratio = statistics.median(mine / bare for bare, mine in rounds)
        table.add_row(
            technique, f"{statistics.median(floors) * 1e3:.1f}", f"{statistics.median(loops) * 1e3:.1f}", f"{ratio:.2f}"
        )
    console = Console()
    console.print(table)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")


if __name__ == "__main__":
    main()
