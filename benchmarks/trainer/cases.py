"""What is measured: a case is one training in a process of its own, by one side. All is data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Side = Literal["script", "tuned", "ours"]
Technique = Literal["lora", "dreamBooth", "textualInversion"]
Device = Literal["cpu", "cuda"]
Figure = Literal["step", "first", "job", "mfu", "stall"]

WARM_UP = 10
"""Steps that do not count: they compile, capture, and fill caches."""
STEPS = 60
CHECKPOINT_EVERY = 20
ALLOCATOR_CAP = int(7.25 * 2**30)
"""Bytes that torch may hold on the GPU in a small case."""
DEVICE_CAP = 8 * 2**30
"""Bytes by which the use of the GPU may rise then, all that is not torch's included."""


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
    small: bool = False
    """As on a GPU of 8 GiB: activations computed twice, and the script under DeepSpeed ZeRO-2 with the optimizer on the
    CPU, ours with weights in bf16 and moments of a byte each."""
    text_encoder: bool = False
    """DreamBooth trains it too."""
    checkpoint_every: int = 0
    """Steps; 0: as either side has it by default. Otherwise each step is waited for, to see what a checkpoint costs."""

    @property
    def key(self) -> str:
        """Names the case in the file of results."""
        parts = [self.device, self.technique, f"b{self.batch}", f"{self.steps}-steps", self.side]
        parts += [f"{self.class_images}-class-images"] if self.class_images > 4 else []
        parts += [self.engine.lower()] if self.engine != "Auto" else []
        parts += ["text-encoder"] if self.text_encoder else []
        parts += ["8-gib"] if self.small else []
        parts += [f"checkpoint-every-{self.checkpoint_every}"] if self.checkpoint_every else []
        return "/".join([*parts, *(["warm"] if self.warm else [])])

    def by(self, side: Side) -> Case:
        """The same training by a script, which has no engine to choose."""
        return replace(self, side=side, engine="Auto")


@dataclass(frozen=True)
class Row:
    """A line of the table: a ratio of ours to the script's, both measured in one run."""

    title: str
    ours: Case
    figure: Figure
    """step: seconds a step; first: seconds from the process's start to the end of the first step; job: to the weights
    on the disk; mfu: of the step; stall: seconds that a checkpoint costs the training."""
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


def _stall(device: Device, technique: Technique, must: str) -> Row:
    """One case for each technique: what a checkpoint holds differs."""
    title = f"{TITLES[technique]}: a checkpoint's stall"
    return Row(title, Case(device, technique, 1, "ours", checkpoint_every=CHECKPOINT_EVERY), "stall", must)


def _in_8_gib(text_encoder: bool) -> Row:
    what = "UNet and text encoder" if text_encoder else "UNet"
    case = Case("cuda", "dreamBooth", 1, "ours", small=True, text_encoder=text_encoder)
    return Row(f"DreamBooth with prior in 8 GiB, {what}, batch 1+1: steps/s", case, "step", "2×", "5×")


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
    _stall("cpu", "lora", "1 s at most"),
    _stall("cpu", "dreamBooth", "–"),
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
    _in_8_gib(text_encoder=False),
    _in_8_gib(text_encoder=True),
    _stall("cuda", "lora", "1 s at most"),
    _stall("cuda", "dreamBooth", "–"),
)
ROWS = (*CPU_ROWS, *GPU_ROWS)


def cases_of(rows: tuple[Row, ...]) -> list[Case]:
    """Every case that the rows need, each once, those that are compared one after the other."""
    found: dict[Case, None] = {}
    for row in rows:
        sides = (row.ours,) if row.figure == "mfu" else (row.script, row.tuned, row.ours)
        found.update(dict.fromkeys(sides))
    return list(found)
