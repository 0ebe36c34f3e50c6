"""From the benchmark's lines to the figures and the tables in the repository, and the processes that it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no part of what is installed

from benchmarks.trainer import processes
from benchmarks.trainer.cases import Case
from benchmarks.trainer.device import DeviceUse
from benchmarks.trainer.processes import Failed, OutOfTime, launcher, measure
from benchmarks.trainer.publishing import DOCS, FIGURES, filled, kept_in, publish, section
from benchmarks.trainer.results import Result
from benchmarks.trainer.watch import Measured

OURS = Case("cpu", "lora", 1, "ours")
SCRIPT = OURS.by("script")
WHERE = {
    "at": "2026-11-23T10:00:00+00:00",
    "commit": "abc1234",
    "device": "cpu",
    "cores": "2 × Some Processor",
    "threads": "1",
    "load": 0.4,
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
}


def line(case: Case, number: int, step: float, **where: object) -> Result:
    found = Measured(4.0, step, 50, 9.0, 2.0, step, 1, 0)
    return Result(case.key, number, found, "", {**WHERE, **where})


def test_the_docs_have_the_tables_of_the_figures_in_the_repository() -> None:
    text = DOCS.read_text()
    assert filled(text, section(kept_in(FIGURES))) == text, "python -m benchmarks.trainer --publish"


def test_what_is_published_takes_the_place_of_the_same_cases_alone(tmp_path: Path) -> None:
    figures, docs = tmp_path / "figures.json", tmp_path / "performance.md"
    docs.write_text("# Performance\n\nHow.\n\n## Tables\n\nold\n\n## What is told\n\nMuch.\n")
    failed = Result(OURS.by("tuned").key, 1, None, "exit code 1: a | b", {**WHERE, "load": 2.0})
    publish([line(SCRIPT, 1, 0.123456789), line(OURS, 1, 0.1), failed], figures, docs)
    publish([line(OURS, 1, 0.05, commit="def5678", at="2026-11-24T10:00:00+00:00")], figures, docs)

    kept = {result.case: result for result in kept_in(figures)}
    assert kept[SCRIPT.key].measured == Measured(4.0, 0.1235, 50, 9.0, 2.0, 0.1235, 1, 0)
    assert kept[OURS.key].measured.step == 0.05
    assert kept[failed.case] == failed
    assert len(kept_in(figures)) == 3, "one round of each"
    assert len(json.loads(figures.read_text())["machines"]) == 2

    text = docs.read_text()
    assert text.startswith("# Performance\n\nHow.\n\n## Tables\n")
    assert text.endswith("\n\n## What is told\n\nMuch.\n")
    row = "| LoRA, batch 1: steps/s | 123.5 ms | failed: exit code 1: a / b | 50.0 ms | 2.47× (processor time 2.47×) |"
    assert row in text
    machine = "Measured on 2 × Some Processor; threads: 1; python 3.11.7, torch 2.13.0"
    assert f"{machine}; commit abc1234; 2026-11-23; load 0.4 to 2." in text
    assert f"{machine}; commit def5678; 2026-11-24; load 0.4." in text


def test_cases_that_are_no_longer_in_a_row_are_not_kept(tmp_path: Path) -> None:
    figures, docs = tmp_path / "figures.json", tmp_path / "performance.md"
    docs.write_text("## Tables\n")
    publish([line(Case("cpu", "lora", 3, "ours"), 1, 0.1), line(OURS, 1, 0.1)], figures, docs)
    assert [result.case for result in kept_in(figures)] == [OURS.key]


def test_scripts_in_8_gib_are_launched_with_files_of_accelerate() -> None:
    small = Case("cuda", "dreamBooth", 1, "script", small=True)
    assert launcher(Case("cuda", "dreamBooth", 1, "script")) == []
    for case in (small, small.by("tuned")):
        *command, file = launcher(case)
        assert command == ["-m", "accelerate.commands.launch", "--config_file"]
        assert "distributed_type: DEEPSPEED" in Path(file).read_text()
    assert launcher(small) != launcher(small.by("tuned"))


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A graphics card: nvidia-smi says the numbers in this file, in MiB, one a look, and then the last one again."""
    numbers, program = tmp_path / "numbers", tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\nhead -1 {numbers}\nif [ $(wc -l < {numbers}) -gt 1 ]; then sed -i 1d {numbers}; fi\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("benchmarks.trainer.device.SECONDS_BETWEEN_LOOKS", 0.001)
    return numbers


def test_the_use_of_a_gpu_is_what_it_rose_to(said: Path) -> None:
    said.write_text("500\n600\n8700\n700\n")
    with DeviceUse() as use:
        while len(said.read_text().splitlines()) > 1:
            time.sleep(0.001)
    assert use.rise == 8200 * 2**20


@pytest.mark.parametrize("after", [9000, 8000])
def test_what_takes_more_than_8_gib_of_the_gpu_has_failed(
    after: int, said: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said.write_text(f"500\n{500 + after}\n500\n")
    found = Measured(4.0, 0.1, 50, 9.0, 2.0, 0.1, 1, 1)

    def train(*_: object) -> Measured:
        while len(said.read_text().splitlines()) > 1:
            time.sleep(0.001)
        return found

    monkeypatch.setattr(processes, "_process", train)
    monkeypatch.setattr(processes, "model_of", lambda case, folder: tmp_path / "sd15")
    case = Case("cuda", "dreamBooth", 1, "ours", small=True)
    if after > 8192:
        with pytest.raises(Failed, match=r"it took 8.79 GiB of the GPU, not 8"):
            measure(case, tmp_path / "work")
    else:
        assert measure(case, tmp_path / "work").used == 8000 * 2**20


def test_a_process_that_takes_too_long_is_ended_with_those_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, wait = tmp_path / "log", subprocess.Popen.wait

    def until_the_innermost_began(self: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout is None:
            return wait(self)
        while not log.read_text().endswith("\n"):
            time.sleep(0.01)
        raise subprocess.TimeoutExpired("sh", timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", until_the_innermost_began)
    with pytest.raises(TimeoutError):
        processes._process(["sh", "-c", "sh -c 'sleep 99 & echo $!; wait'; true"], {}, tmp_path, time.monotonic() + 60)
    number = int(log.read_text().split()[0])  # a shell may say that it was killed
    assert not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE


def test_only_what_had_all_the_time_there_is_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_long(*_: object) -> Measured:
        raise TimeoutError

    monkeypatch.setattr(processes, "_process", too_long)
    with pytest.raises(OutOfTime):
        measure(OURS, tmp_path, 60.0)
    with pytest.raises(Failed, match="more than 520 s"):
        measure(OURS, tmp_path)


def test_a_failure_is_told_in_the_words_of_the_script_and_not_of_its_launcher(tmp_path: Path) -> None:
    script = "raise AssertionError('one model only')"
    launch = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {script!r}], check=True)"
    with pytest.raises(Failed, match="AssertionError: one model only"):
        processes._process([sys.executable, "-c", launch], {}, tmp_path, time.monotonic() + 60)
