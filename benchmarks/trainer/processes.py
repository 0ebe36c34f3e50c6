"""One case in a process of its own: what it is given, and what it found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from finetune_trainer.sources.builtin import open_builtin

from benchmarks.trainer.baseline.options import CLASS_PROMPT, INITIALIZER, PLACEHOLDER, PROMPT, Options
from benchmarks.trainer.cases import Case
from benchmarks.trainer.sd15 import make_model
from benchmarks.trainer.watch import Measured, found

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "examples/subjects/figure"
LIMIT_SECONDS = 520
"""Of a process: a command is over in 9 minutes."""
RANK = 4


class Failed(Exception):
    """A process that ended with an error; its message is the end of what it said."""


def measure(case: Case, folder: Path) -> Measured:
    """Runs `case` once, in an empty folder in `folder`; models that were made stay there.

    Raises:
        Failed: the process did.
    """
    model = model_of(case, folder)
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if case.side == "ours":
        given, module = job_of(case, model, work), "benchmarks.trainer.ours"
    else:
        options = options_of(case, model, work)
        fill_class_folder(case, options)
        given = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
        module = "benchmarks.trainer.baseline"
    if case.warm:
        _process(module, given, work, LIMIT_SECONDS / 2)
        return _process(module, given, work, LIMIT_SECONDS / 2)
    return _process(module, given, work, LIMIT_SECONDS)


def model_of(case: Case, folder: Path) -> Path:
    """The base model: builtin://tiny-shapes for a CPU, the shapes of Stable Diffusion 1.5 for a GPU."""
    tiny = open_builtin("builtin://tiny-shapes")
    if case.device == "cpu":
        return tiny
    made = folder / "sd15"
    make_model(made, tiny / "tokenizer")
    return made


def options_of(case: Case, model: Path, work: Path) -> Options:
    """For the side of the scripts."""
    return Options(
        technique=case.technique,
        model=model,
        pictures=PICTURES,
        classes=work / "classes",
        output=work / "output",
        batch=case.batch,
        steps=case.steps,
        resolution=512 if case.device == "cuda" else 64,
        class_images=case.class_images,
        class_steps=case.class_steps,
        precision="bf16" if case.device == "cuda" else "no",
        tuned=case.side == "tuned",
        rank=RANK,
    )


def job_of(case: Case, model: Path, work: Path) -> dict[str, object]:
    """For our side: a FineTuneJob with the same training. Pictures before and after are as few as they may be; the
    scripts draw none."""
    images = {"count": case.class_images, "inferenceSteps": case.class_steps}
    prior = {"classPrompt": CLASS_PROMPT, "classImages": images}
    methods: dict[str, dict[str, object]] = {
        "lora": {"prompt": PROMPT, "rank": RANK},
        "dreamBooth": {"prompt": PROMPT, "priorPreservation": prior},
        "textualInversion": {"tokens": [{"placeholder": PLACEHOLDER, "initializer": INITIALIZER}]},
    }
    builtin = case.device == "cpu"
    spec: dict[str, object] = {
        "baseModel": {"uri": "builtin://tiny-shapes" if builtin else f"file://{model}"},
        "method": {case.technique: methods[case.technique]},
        "dataset": {"uri": f"file://{PICTURES}"},
        "training": {"steps": case.steps, "batchSize": case.batch, "precision": "fp32" if builtin else "bf16"},
        "validation": {"prompts": [CLASS_PROMPT], "imagesPerPrompt": 1, "inferenceSteps": 1, "guidanceScale": 1},
        "output": {"uri": f"file://{work / 'output'}"},
    }
    if case.engine != "Auto":
        spec["engine"] = {"kind": case.engine}
    kind = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob"}
    return {**kind, "metadata": {"name": "benchmark"}, "spec": spec}


def fill_class_folder(case: Case, options: Options) -> None:
    """Where class pictures are no part of what is measured, the script finds as many as it wants."""
    if case.technique != "dreamBooth" or case.class_images > 4:
        return
    options.classes.mkdir()
    pictures = sorted(PICTURES.iterdir())
    for index in range(options.class_images):
        shutil.copy(pictures[index % len(pictures)], options.classes / f"{index}.png")


def _process(module: str, given: dict[str, object], work: Path, seconds: float) -> Measured:
    given_file, result = work / "given.json", work / "result.json"
    given_file.write_text(json.dumps(given))
    environment = {**os.environ, "FINETUNE_WORK_DIR": str(work / "ours"), "FINETUNE_CACHE_DIR": str(work / "cache")}
    command = [sys.executable, "-m", module, str(given_file), str(result)]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"it took more than {seconds:g} s") from error
    if done.returncode != 0:
        raise Failed(f"exit code {done.returncode}: {' '.join(done.stdout.split())[-400:]}")
    return found(result)
