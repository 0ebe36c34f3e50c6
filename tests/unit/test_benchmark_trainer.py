"""The benchmark of trainings: what is measured next, what is kept, and what the table says."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no part of what is installed

from finetune_api import FineTuneJobSpec, RunIdentity, resolve

from benchmarks.trainer import table
from benchmarks.trainer.__main__ import measure_all
from benchmarks.trainer.cases import CPU_ROWS, GPU_ROWS, ROWS, WARM_UP, Case, Row, cases_of
from benchmarks.trainer.processes import LIMIT_SECONDS, Failed, OutOfTime, given_ours, job_of, options_of
from benchmarks.trainer.results import Result, append, next_case, read
from benchmarks.trainer.watch import Measured, Watch

OURS = Case("cpu", "lora", 1, "ours")
SCRIPT, TUNED = OURS.by("script"), OURS.by("tuned")
ROW = Row("LoRA, batch 1: steps/s", OURS, "step", "1.2×", "–")


def measured(step: float, first: float = 4.0, mfu: float | None = None, device: int = 0) -> Measured:
    return Measured(
        first=first,
        step=step,
        counted=50,
        job=9.0,
        first_cpu=first / 2,
        step_cpu=step / 4,
        resident=1,
        device=device,
        mfu=mfu,
    )


def result(case: Case, number: int, found: Measured | None, failure: str = "") -> Result:
    return Result(case.key, number, found, failure, {})


def test_every_row_has_its_scripts_beside_it_and_every_case_is_measured_once() -> None:
    cases = cases_of(ROWS)
    assert len({case.key for case in cases}) == len(cases), "keys tell cases apart"
    for row in ROWS:
        assert row.ours in cases
        if row.figure != "mfu":
            place = cases.index(row.script)
            assert cases[place + 1] == row.tuned, "one after the other, on the same machine in the same minutes"
    assert {row.ours.device for row in CPU_ROWS} == {"cpu"}
    assert {row.ours.device for row in GPU_ROWS} == {"cuda"}
    assert all(row.ours.steps - WARM_UP >= 50 for row in ROWS), "at least 50 steps count"


def test_a_command_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    cases = [SCRIPT, OURS]
    assert next_case(cases, 2, read(file)) == (SCRIPT, 1)
    append(file, result(SCRIPT, 1, measured(0.1)))
    assert next_case(cases, 2, read(file)) == (OURS, 1)
    append(file, result(OURS, 1, measured(0.1)))
    assert next_case(cases, 2, read(file)) == (SCRIPT, 2), "round by round"
    append(file, result(SCRIPT, 2, None, "no memory"))
    append(file, result(OURS, 2, measured(0.2)))
    assert next_case(cases, 2, read(file)) is None
    assert next_case(cases, 3, read(file)) == (OURS, 3), "what failed is not tried again"


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    append(file, result(SCRIPT, 1, measured(0.1)))
    file.write_text(file.read_text() + file.read_text()[:40])
    append(file, result(OURS, 1, measured(0.2)))
    assert [one.case for one in read(file)] == [SCRIPT.key, OURS.key]
    assert read(file)[1].measured == measured(0.2)


def test_a_command_ends_in_time_and_keeps_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, asked = tmp_path / "lines", []

    def pretend(case: Case, work: Path, seconds: float) -> Measured:
        asked.append(case)
        if case == TUNED:
            raise Failed("exit code 1: no memory")
        return measured(0.1)

    monkeypatch.setattr("benchmarks.trainer.__main__.measure", pretend)
    cases = [SCRIPT, TUNED, OURS]
    assert measure_all(cases, 2, file, tmp_path, 0.0, "cpu"), "one at least, or it would never come to an end"
    assert asked == [SCRIPT]
    assert not measure_all(cases, 2, file, tmp_path, 1000.0, "cpu")
    assert asked == [SCRIPT, TUNED, OURS, SCRIPT, OURS]
    assert json.loads(file.read_text().splitlines()[0])["where"]["device"] == "cpu"
    assert table.cells(ROW, read(file))[2] == "failed: exit code 1: no memory"


def test_what_the_command_has_no_time_for_is_not_taken_for_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, allowed = tmp_path / "lines", []

    def pretend(case: Case, work: Path, seconds: float) -> Measured:
        allowed.append(seconds)
        if len(allowed) == 2:
            raise OutOfTime
        return measured(0.1)

    monkeypatch.setattr("benchmarks.trainer.__main__.measure", pretend)
    assert measure_all([SCRIPT, TUNED], 1, file, tmp_path, 300.0, "cpu"), "there is more"
    assert [one.case for one in read(file)] == [SCRIPT.key]
    assert allowed[0] == LIMIT_SECONDS, "the first one of a command has all the time there is"
    assert allowed[1] < 300
    assert not measure_all([SCRIPT, TUNED], 1, file, tmp_path, 300.0, "cpu")
    assert [one.case for one in read(file)] == [SCRIPT.key, TUNED.key]


def test_the_table_compares_rounds_with_each_other() -> None:
    results = [
        result(SCRIPT, 1, measured(0.1)),
        result(OURS, 1, measured(0.05)),
        result(SCRIPT, 2, measured(0.9)),
        result(OURS, 2, measured(0.3)),
        result(SCRIPT, 3, measured(0.2)),
    ]
    assert table.cells(ROW, results) == (
        "LoRA, batch 1: steps/s",
        "200.0 ms (100.0 ms to 900.0 ms)",
        "not measured",
        "175.0 ms (50.0 ms to 300.0 ms)",
        "2.50× (processor time 2.50×)",
        "not measured",
        "1.2×",
        "–",
    )


def test_rows_for_a_gpu_say_so_where_there_was_none() -> None:
    for row in GPU_ROWS:
        assert set(table.cells(row, [result(OURS, 1, measured(0.1))])[1:6]) <= {"not measured", "–"}


def test_utilisation_and_memory_are_told() -> None:
    case = Case("cuda", "lora", 16, "ours")
    row = Row("LoRA, batch 16: MFU", case, "mfu", "25 %", "40 %")
    results = [result(case, 1, measured(0.1, mfu=0.31, device=3 * 2**30))]
    assert table.cells(row, results)[3] == "31.0%"
    assert table.in_words(replace(row, figure="step"), case, results) == "100.0 ms, 3.0 GiB"


class Clock:
    """Stands still but for what is done in between."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for name in ("time", "perf_counter", "process_time"):
            monkeypatch.setattr(f"benchmarks.trainer.watch.time.{name}", lambda: self.now)


def test_a_watch_counts_what_came_between_the_warm_up_and_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waits = Clock(monkeypatch), []
    watch = Watch(2, 5, lambda: waits.append(clock.now))
    for seconds in (7.0, 5.0, 1.0, 2.0, 3.0):
        assert watch.is_warm == (seconds < 4)
        clock.now += seconds
        watch.step()
    clock.now += 100.0  # the last checkpoint, pictures, weights
    found = watch.done()
    assert (found.counted, found.step, found.step_cpu) == (3, 2.0, 2.0)
    assert waits == [1007.0, 1012.0, 1018.0], "after step 1, after the warm-up, and after the last step"
    assert watch.done(skipped=1).step == 3.0, "a step that changed nothing is no step"
    assert watch.done(skipped=1).counted == 2
    with pytest.raises(ValueError, match="5 steps, of which 3 changed nothing"):
        watch.done(skipped=3)


def test_a_training_that_is_shorter_than_it_should_be_is_not_measured() -> None:
    watch = Watch(2, 5)
    for _ in range(4):
        watch.step()
    with pytest.raises(ValueError, match="4 steps and not 5"):
        watch.done()


def test_a_stall_is_what_a_checkpoint_adds_to_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waits = Clock(monkeypatch), []
    watch = Watch(1, 8, lambda: waits.append(1), each=True)
    for step in range(1, 9):
        clock.now += 0.5
        watch.step()
        if step in (3, 5):
            clock.now += 0.25 * step
            watch.checkpoint()
    assert len(waits) == 8, "each step is waited for"
    assert watch.done().stall == 1.0, "the median of 0.75 and 1.25"
    row = Row("LoRA: a checkpoint's stall", OURS, "stall", "1 s at most")
    rounds = [result(SCRIPT, 1, replace(measured(0.1), stall=3.0)), result(OURS, 1, replace(measured(0.1), stall=1.5))]
    assert table.cells(row, rounds)[1:5] == ("3.0 s", "not measured", "1.5 s", "2.00×")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.ours.key)
def test_both_sides_are_given_the_same_training(row: Row, tmp_path: Path) -> None:
    # which engine executes it changes nothing about what is trained
    spec = job_of(replace(row.ours, engine="Auto"), tmp_path / "sd15", tmp_path)["spec"]
    run = resolve(FineTuneJobSpec.model_validate(spec), None, RunIdentity(name="benchmark", namespace="local", uid="b"))
    options = options_of(row.script, tmp_path / "sd15", tmp_path)
    assert (run.training.steps, run.training.batch_size) == (options.steps, options.batch)
    assert (run.training.precision == "bf16") == (options.precision == "bf16")
    assert run.training.max_grad_norm == 1.0
    assert not run.training.ema
    assert run.dataset.uri == f"file://{options.pictures}"
    if run.method.lora is not None:
        assert run.method.lora.rank == options.rank
        assert run.method.lora.targets == ("attention",)
    if run.method.dream_booth is not None:
        prior = run.method.dream_booth.prior_preservation
        assert prior is not None
        assert prior.class_images is not None
        assert (prior.class_images.count, prior.class_images.inference_steps) == (
            options.class_images,
            options.class_steps,
        )
        assert prior.weight == 1.0
        assert run.method.dream_booth.train_text_encoder == options.text_encoder
    assert run.training.gradient_checkpointing == options.small
    assert run.training.weights_dtype == ("bf16" if options.small else "fp32")
    assert (run.checkpoints.every_steps or 0) == options.checkpoint_every
    if options.small:
        cap = given_ours(row.ours, tmp_path / "sd15", tmp_path)["hold_at_most"]
        assert cap == options.hold_at_most == 7.25 * 2**30
