"""One case in a process of its own: what it is given, and what it found."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import psutil
from finetune_trainer.sources.builtin import open_builtin

from benchmarks.trainer.baseline.options import CLASS_PROMPT, INITIALIZER, PLACEHOLDER, PROMPT, Options
from benchmarks.trainer.cases import ALLOCATOR_CAP, DEVICE_CAP, Case
from benchmarks.trainer.device import DeviceUse
from benchmarks.trainer.ours import Given
from benchmarks.trainer.sd15 import make_model
from benchmarks.trainer.watch import Measured, found

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "examples/subjects/figure"
LIMIT_SECONDS = 520
"""Of a process: a command is over in 9 minutes."""
RANK = 4


class Failed(Exception):
    """A process that ended with an error, or did what it may not; the message is the end of what it said."""


class OutOfTime(Exception):
    """It was ended before it was done, with less than LIMIT_SECONDS to do it in."""


def measure(case: Case, folder: Path, seconds: float = LIMIT_SECONDS) -> Measured:
    """Runs `case` once within `seconds`, in an empty folder in `folder`; models that were made stay there.

    Raises:
        Failed: the process did.
        OutOfTime: it might not have with more.
    """
    until = time.monotonic() + min(seconds, LIMIT_SECONDS)
    model = model_of(case, folder)
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if case.side == "ours":
        given, command = given_ours(case, model, work), [sys.executable, "-m", "benchmarks.trainer.ours"]
    else:
        options = options_of(case, model, work)
        fill_class_folder(case, options)
        given = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
        command = [sys.executable, *launcher(case), "-m", "benchmarks.trainer.baseline"]
    try:
        if case.warm:
            _process(command, given, work, until)
        if not case.small or case.device == "cpu":
            return _process(command, given, work, until)
        with DeviceUse() as use:
            measured = _process(command, given, work, until)
    except TimeoutError as error:
        if seconds < LIMIT_SECONDS:
            raise OutOfTime from error
        raise Failed(f"it took more than {LIMIT_SECONDS:g} s") from error
    if use.rise > DEVICE_CAP:
        raise Failed(f"it took {use.rise / 2**30:.2f} GiB of the GPU, not 8")
    return replace(measured, used=use.rise)


def launcher(case: Case) -> list[str]:
    """What starts a script in a way of its own: `accelerate launch` with a file, where DeepSpeed is to be used."""
    if not case.small:
        return []
    file = Path(__file__).parent / "baseline" / ("zero2_tuned.yaml" if case.side == "tuned" else "zero2.yaml")
    return ["-m", "accelerate.commands.launch", "--config_file", str(file)]


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
        checkpoint_every=case.checkpoint_every,
        small=case.small,
        text_encoder=case.text_encoder,
        hold_at_most=ALLOCATOR_CAP if case.small and case.device == "cuda" else 0,
    )


def job_of(case: Case, model: Path, work: Path) -> dict[str, object]:
    """For our side: a FineTuneJob with the same training. Pictures before and after are as few as they may be; the
    scripts draw none."""
    images = {"count": case.class_images, "inferenceSteps": case.class_steps}
    prior = {"classPrompt": CLASS_PROMPT, "classImages": images}
    methods: dict[str, dict[str, object]] = {
        "lora": {"prompt": PROMPT, "rank": RANK},
        "dreamBooth": {"prompt": PROMPT, "priorPreservation": prior, "trainTextEncoder": case.text_encoder},
        "textualInversion": {"tokens": [{"placeholder": PLACEHOLDER, "initializer": INITIALIZER}]},
    }
    builtin = case.device == "cpu"
    training = {"steps": case.steps, "batchSize": case.batch, "precision": "fp32" if builtin else "bf16"}
    if case.small:
        training |= {
            "precision": "bf16",
            "weightsDtype": "bf16",
            "optimizer": {"name": "AdamW8bit"},
            "gradientCheckpointing": True,
        }
    spec: dict[str, object] = {
        "baseModel": {"uri": "builtin://tiny-shapes" if builtin else f"file://{model}"},
        "method": {case.technique: methods[case.technique]},
        "dataset": {"uri": f"file://{PICTURES}"},
        "training": training,
        "validation": {"prompts": [CLASS_PROMPT], "imagesPerPrompt": 1, "inferenceSteps": 1, "guidanceScale": 1},
        "output": {"uri": f"file://{work / 'output'}"},
    }
    if case.checkpoint_every:
        spec["checkpoints"] = {"everySteps": case.checkpoint_every}
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


def given_ours(case: Case, model: Path, work: Path) -> dict[str, object]:
    """As options_of, for our side."""
    cap = ALLOCATOR_CAP if case.small and case.device == "cuda" else 0
    return asdict(Given(job_of(case, model, work), case.steps, case.checkpoint_every > 0, cap))


def _process(command: list[str], given: dict[str, object], work: Path, until: float) -> Measured:
    """Raises Failed; TimeoutError where it was not done by `until`, in time.monotonic's seconds."""
    given_file, result = work / "given.json", work / "result.json"
    given_file.write_text(json.dumps(given))
    environment = {**os.environ, "FINETUNE_WORK_DIR": str(work / "ours"), "FINETUNE_CACHE_DIR": str(work / "cache")}
    with (work / "log").open("w+", errors="replace") as log:
        process = subprocess.Popen(
            [*command, str(given_file), str(result)], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(until - time.monotonic())
        except subprocess.TimeoutExpired as error:
            raise TimeoutError from error
        finally:
            _end(process)
        log.seek(0)
        if code != 0:
            raise Failed(f"exit code {code}: {_last_words(log.read())}")
    return found(result)


def _end(process: subprocess.Popen[bytes]) -> None:
    """With the processes that it started, which would hold the GPU's memory and the cores of the next case."""
    if process.poll() is not None:
        # its number may be another's by now
        return
    family = psutil.Process(process.pid).children(recursive=True)
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.kill()
    process.wait()
    while not all(map(_is_over, family)):
        time.sleep(0.05)


def _is_over(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _last_words(said: str) -> str:
    """Of what a process said, the error that it ended with: launchers write a page of their own behind it."""
    lines = said.splitlines()
    errors = [line for line in lines if re.match(r"(\[rank\d+\]: ?)?[\w.]*(Error|Exit|Exception|Interrupt): ", line)]
    own = [line for line in errors if "ChildFailedError" not in line and "CalledProcessError" not in line]
    return own[-1][:400] if own else " ".join(said.split())[-400:]
