"""Runs of the trainer's core on the tiny model: pictures, TrainingRuns, a listener that remembers."""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from finetune_api import FineTuneJobSpec, RunIdentity, TrainingRun, resolve
from finetune_api.resolve import prior_of
from finetune_trainer.background import Background
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.data.class_images import ensure_class_images
from finetune_trainer.data.dataset import Dataset, read_dataset
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.families import Family, load_family
from finetune_trainer.group.team import ALONE, Team
from finetune_trainer.methods import Method, make_methods
from finetune_trainer.publish.store import Store
from finetune_trainer.telemetry.listener import EngineReport, JudgementReport, StepReport
from finetune_trainer.training.duties import Duty
from finetune_trainer.training.loop import TrainOutcome, train
from PIL import Image

T = TypeVar("T")

PROMPT = "sks dog"
PRIOR = {
    "classPrompt": "dog",
    "weight": 0.7,
    "classImages": {"count": 4, "inferenceSteps": 2, "guidanceScale": 3.0, "batchSize": 2},
}


@dataclass
class Memory:
    """Implements Listener."""

    steps: list[StepReport] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    judgements: list[JudgementReport] = field(default_factory=list)
    activities: list[str] = field(default_factory=list)
    engines: list[EngineReport] = field(default_factory=list)
    done: list[tuple[int, int]] = field(default_factory=list)
    resumed_from: int | None = None

    def stage(self, name: str) -> None:
        self.messages.append(name)

    def planned(self, report: EngineReport) -> None:
        self.engines.append(report)

    def begins(self, total_steps: int, resumed_from: int | None) -> None:
        self.resumed_from = resumed_from

    def step(self, report: StepReport) -> None:
        self.steps.append(report)

    def checkpoint(self, step: int, seconds: float) -> None:
        self.checkpoints.append(step)

    def judged(self, report: JudgementReport) -> None:
        self.judgements.append(report)

    def spent(self, activity: str, seconds: float) -> None:
        self.activities.append(activity)

    def work(self, done: int, total: int, what: str) -> None:
        self.done.append((done, total))

    def message(self, text: str) -> None:
        self.messages.append(text)


class Unhurried(Background):
    """Work is done by the thread, and waited for: at which steps checkpoints stand does not depend on how long storing
    them takes beside steps of a few milliseconds."""

    def submit(self, work: Callable[[], T], then: Callable[[Future[T]], None]) -> None:
        super().submit(work, then)
        self.finish()


def make_pictures(folder: Path, count: int = 3) -> Path:
    """Smooth random pictures, not square, each another size."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(7)
    for index in range(count):
        coarse = Image.fromarray(numbers.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((20 + 4 * index, 24), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def make_run(technique: str = "lora", prior: bool = False, **changes: dict[str, object]) -> TrainingRun:
    """A resolved run; `changes` are merged into the sections of the spec, such as training={"steps": 3}."""
    method: dict[str, object] = {"prompt": PROMPT} | ({"rank": 4} if technique == "lora" else {})
    if prior:
        method["priorPreservation"] = copy.deepcopy(PRIOR)
    spec: dict[str, dict[str, object]] = {
        "baseModel": {"uri": "file:///model"},
        "method": {technique: method},
        "dataset": {"uri": "file:///pictures"},
        "training": {"steps": 6, "learningRate": 1e-2 if technique == "lora" else 1e-3},
        "output": {"uri": "file:///output"},
    }
    for section, values in changes.items():
        spec[section] = spec.get(section, {}) | values
    identity = RunIdentity(name="tiny", namespace="local", uid="tiny")
    return resolve(FineTuneJobSpec.model_validate(spec), None, identity)


def dataset_of(run: TrainingRun, pictures: Path | PictureSet) -> Dataset:
    """The pictures, or those of a folder, with the captions and masks that `run` asks for."""
    found = pictures if isinstance(pictures, PictureSet) else PictureSet.open(pictures)
    return read_dataset(found, run.dataset)


@dataclass(frozen=True)
class Trained(TrainOutcome):
    """How a training ended, and what was trained."""

    methods: tuple[Method, ...]


def train_once(
    run: TrainingRun,
    model: Path,
    pictures: Path,
    folder: Path,
    should_stop: Callable[[], bool] = lambda: False,
    listener: Memory | None = None,
    store: Store | None = None,
    attempt: str = "first",
    team: Team = ALONE,
    duties_of: Callable[[Family], Sequence[Duty]] = lambda family: (),
    methods: Sequence[Method] = (),
    background: Background | None = None,
) -> tuple[Family, Trained]:
    """Everything that a pod does between fetching and exporting; `folder` plays its disk. `duties_of` gets the base
    model before a technique is installed; `methods` are given where a duty must know them too. `background` is an
    unhurried one where none is given. `should_stop` is asked between steps only, which some count."""
    listener = listener or Memory()
    family = load_family(model, torch.device("cpu"))
    prior = prior_of(run.method)
    resolution = run.dataset.resolution or family.resolution
    classes: list[Path] = []
    if prior is not None:
        classes = ensure_class_images(family, prior, 0, resolution, folder / "cache", listener, lambda: False)
    checkpoints = Checkpoints(folder / "checkpoints", store, "checkpoints/", "run", attempt, run.checkpoints.keep)
    kept = checkpoints if team.leads else None
    methods = tuple(methods or make_methods(run.method, run.training.seed))
    with background or Unhurried() as background:
        outcome = train(
            run,
            family,
            methods,
            dataset_of(run, pictures),
            classes,
            folder / "cache",
            kept,
            listener,
            lambda: "Training" in listener.messages and should_stop(),
            team=team,
            duties=duties_of(family),
            background=background,
        )
    return family, Trained(**vars(outcome), methods=methods)
