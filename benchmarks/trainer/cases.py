"""What is measured: a case is one training in a process of its own, by one side. All is data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Side = Literal["script", "tuned", "ours"]
Technique = Literal["lora", "dreamBooth", "textualInversion"]
Device = Literal["cpu", "cuda"]

WARM_UP = 10
"""Steps that do not count: they compile, capture, and fill caches."""
STEPS = 60
SCRIPTS: tuple[Side, ...] = ("script", "tuned")


@dataclass(frozen=True)
class Case:
    """One training."""

    device: Device
    technique: Technique
    batch: int
    side: Side
    steps: int = STEPS
    class_images: int = 4
    """To be drawn before it, with prior preservation."""
    class_steps: int = 1
    """Denoising steps of each."""
    engine: str = "Auto"
    """spec.engine.kind; the scripts have none."""
    warm: bool = False
    """With the caches of a training before it, which is not measured."""

    @property
    def key(self) -> str:
        """Names the case in the file of results."""
        parts = [self.device, self.technique, f"b{self.batch}", f"{self.steps}-steps", self.side]
        parts += [f"{self.class_images}-class-images"] if self.class_images > 4 else []
        parts += [self.engine.lower()] if self.engine != "Auto" else []
        return "/".join([*parts, *(["warm"] if self.warm else [])])

    def by(self, side: Side, engine: str = "Auto") -> Case:
        """The same training by another side."""
        return replace(self, side=side, engine=engine)


@dataclass(frozen=True)
class Row:
    """A line of the table: a ratio of ours to the script's, both measured in one run."""

    title: str
    ours: Case
    figure: Literal["step", "first", "job", "mfu"]
    """step: seconds a step; first: seconds from the process's start to the end of the first step; job: to the weights
    on the disk; mfu: of the step."""
    must: str
    aim: str = "–"

    @property
    def script(self) -> Case:
        """As documented; for a training with warm caches, the script's own, which has none."""
        return replace(self.ours.by("script"), warm=False)

    @property
    def tuned(self) -> Case:
        """With workers, TF32 and the text computed in advance, where the script has a setting for it."""
        return replace(self.ours.by("tuned"), warm=False)


TITLES: dict[Technique, str] = {
    "lora": "LoRA",
    "dreamBooth": "DreamBooth with prior",
    "textualInversion": "Textual Inversion",
}


def _steps(device: Device, technique: Technique, batch: int, must: str, aim: str, engine: str = "Auto") -> Row:
    title = f"{TITLES[technique]}, batch {batch}{'+' + str(batch) if technique == 'dreamBooth' else ''}"
    how = f", {engine}" if engine != "Auto" else ""
    return Row(f"{title}{how}: steps/s", Case(device, technique, batch, "ours", engine=engine), "step", must, aim)


CPU_ROWS: tuple[Row, ...] = (
    *(_steps("cpu", technique, 1, "1.2×", "–") for technique in TITLES),
    *(_steps("cpu", technique, 4, "1.0×", "–") for technique in TITLES),
    *(
        Row(f"{title}: first step after process start", Case("cpu", technique, 1, "ours"), "first", "1.0×", "1.4×")
        for technique, title in TITLES.items()
    ),
    Row("LoRA, 800 steps: whole job", Case("cpu", "lora", 1, "ours", steps=800), "job", "–"),
    Row(
        "DreamBooth, 200 class images + 800 steps: whole job",
        Case("cpu", "dreamBooth", 1, "ours", steps=800, class_images=200, class_steps=50),
        "job",
        "–",
    ),
)

GPU_LORA_JOB = Case("cuda", "lora", 1, "ours", steps=800)
GPU_DREAMBOOTH_JOB = Case("cuda", "dreamBooth", 1, "ours", steps=800, class_images=200, class_steps=50)
GPU_ROWS: tuple[Row, ...] = (
    _steps("cuda", "lora", 1, "6×", "10×"),
    _steps("cuda", "lora", 4, "4×", "8×", "Captured"),
    _steps("cuda", "lora", 4, "6×", "8×", "Compiled"),
    Row("LoRA, batch 16: MFU", Case("cuda", "lora", 16, "ours"), "mfu", "25 %", "40 %"),
    _steps("cuda", "textualInversion", 1, "4×", "6×"),
    _steps("cuda", "dreamBooth", 1, "4×", "6×"),
    Row("LoRA, 800 steps: whole job, cold caches", GPU_LORA_JOB, "job", "4×", "6×"),
    Row("… warm caches", replace(GPU_LORA_JOB, warm=True), "job", "–"),
    Row("DreamBooth, 200 class images + 800 steps: whole job, cold caches", GPU_DREAMBOOTH_JOB, "job", "3×", "5×"),
    Row("… warm caches", replace(GPU_DREAMBOOTH_JOB, warm=True), "job", "–"),
)
ROWS = (*CPU_ROWS, *GPU_ROWS)


def cases_of(rows: tuple[Row, ...]) -> list[Case]:
    """Every case that the rows need, each once, those that are compared one after the other."""
    found: dict[Case, None] = {}
    for row in rows:
        sides = (row.ours,) if row.figure == "mfu" else (row.script, row.tuned, row.ours)
        found.update(dict.fromkeys(sides))
    return list(found)
