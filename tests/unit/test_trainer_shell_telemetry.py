"""What a run tells: pace, /progress, metrics, logs, the termination message."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from finetune_api import Progress, Result
from finetune_api.progress import EngineInUse, Judgement
from finetune_trainer.errors import ConfigurationError, DataError, Interrupted, RunError
from finetune_trainer.evaluation.meanings import FIGURES
from finetune_trainer.telemetry.board import Board
from finetune_trainer.telemetry.listener import EngineReport, JudgementReport, Listeners, StepReport
from finetune_trainer.telemetry.logs import LogListener, configure_logging
from finetune_trainer.telemetry.metrics import Metrics
from finetune_trainer.telemetry.pace import Pace, figures
from finetune_trainer.telemetry.progress_bar import ProgressBar
from finetune_trainer.telemetry.server import serving
from finetune_trainer.telemetry.termination import LIMIT, encode, failure
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from support.prometheus import dashboard_queries


def judged(step: int, best: int | None = None, **figures: float) -> JudgementReport:
    return JudgementReport(step=step, figures=figures, best_step=best, seconds=2.5)


def report(step: int, loss: float = 0.5, total: int = 100, seconds: float = 0.25) -> StepReport:
    return StepReport(
        step=step, total_steps=total, loss=loss, learning_rate=1e-4, grad_norm=0.75, images=4, seconds=seconds
    )


def without_performance(board: Board) -> Progress:
    return board.progress().model_copy(update={"performance": None})


def test_pace_is_that_of_the_last_twenty_steps() -> None:
    pace = Pace()
    assert (pace.loss, pace.images_per_second, pace.seconds_left, figures(pace)) == (None, None, None, "")
    for step in range(1, 11):
        pace.add(report(step, loss=100.0, seconds=10))
    for step in range(11, 31):
        pace.add(report(step, loss=0.5))
    assert (pace.loss, pace.images_per_second, pace.seconds_left) == (0.5, 16.0, 17.5)
    assert figures(pace) == "loss 0.5000, 16.0 images/s, 0:18 left"


@pytest.mark.parametrize(("seconds", "left"), [(0.1, "0:10"), (1, "1:39"), (40, "1:06:00")])
def test_time_left_reads_like_a_clock(seconds: float, left: str) -> None:
    pace = Pace()
    pace.add(report(1, seconds=seconds))
    assert figures(pace).endswith(f"{left} left")


def test_progress_is_the_latest_of_everything() -> None:
    board = Board("run-1", "pod-1")
    assert board.progress() == Progress(run_uid="run-1", pod_uid="pod-1", stage="Starting", step=0, total_steps=0)
    board.begins(100, 40)
    board.stage("Training")
    assert without_performance(board) == Progress(
        run_uid="run-1",
        pod_uid="pod-1",
        stage="Training",
        step=40,
        total_steps=100,
        checkpoint_step=40,
        resumed_from_step=40,
    ), "the first answer in this stage says already where the attempt went on"
    board.step(report(41))
    board.checkpoint(41, 0.5)
    assert without_performance(board) == Progress(
        run_uid="run-1",
        pod_uid="pod-1",
        stage="Training",
        step=41,
        total_steps=100,
        loss=0.5,
        images_per_second=16,
        seconds_left=59 * 0.25,
        checkpoint_step=41,
        resumed_from_step=40,
    )


def test_progress_has_the_latest_figures_and_only_those_that_are_numbers() -> None:
    board = Board("run-1", "pod-1")
    board.judged(judged(10, None, fidelity=0.5))
    board.judged(judged(20, 10, fidelity=0.25, leak=math.nan))
    assert board.progress().judgement == Judgement(step=20, figures={"fidelity": 0.25}, best_step=10)


def test_progress_has_the_engine_and_its_prediction() -> None:
    board = Board("run-1", "pod-1")
    assert board.progress().engine is None
    board.planned(EngineReport("Captured", "Captured", "a recorded step is the fastest", 2**31))
    assert board.progress().engine == EngineInUse(
        kind="Captured", does="Captured", why="a recorded step is the fastest", predicted_bytes=2**31
    )
    board.planned(EngineReport("Eager", "Eager", "Captured ran out of memory" + "!" * 600, None, "Captured" * 99))
    engine = board.progress().engine
    assert engine is not None
    assert engine.fell_from is not None
    assert (engine.fell_from[:9], len(engine.fell_from)) == ("CapturedC", 256)
    assert (engine.kind, engine.does, len(engine.why), engine.predicted_bytes) == ("Eager", "Eager", 512, None)


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e30])
def test_a_loss_that_json_cannot_say_is_left_out(loss: float) -> None:
    board = Board("run-1", "pod-1")
    board.step(report(1, loss=loss))
    assert board.progress().loss is None


def test_metrics_are_served_under_their_names_and_labels() -> None:
    board, metrics = Board("run-1", "pod-1"), Metrics("team", "my-dog", "lora")
    with serving(0, board, metrics.registry) as port:
        listener = Listeners([board, metrics])
        listener.stage("Training")
        listener.step(report(1, loss=0.7))
        listener.step(replace(report(2, loss=0.5), skipped=True))
        listener.spent("checkpoint", 0.25)
        listener.checkpoint(2, 1.5)
        listener.judged(judged(1, 1, fidelity=0.5, leak=0.25))
        listener.judged(judged(2, 1, fidelity=0.25, leak=0.0))
        text = get(port, "metrics")
        progress = Progress.model_validate_json(get(port, "progress"))
        assert get(port, "healthz") == "ok\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(port, "etc/passwd")
    assert (progress.step, progress.stage) == (2, "Training")

    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert [labels.pop(name) for name in ("namespace", "finetunejob", "method")] == ["team", "my-dog", "lora"]
            samples[(sample.name, *labels.values())] = sample.value
    expected = {
        ("finetune_training_step",): 2,
        ("finetune_training_steps",): 100,
        ("finetune_training_loss",): 0.5,
        ("finetune_training_images_per_second",): 16,
        ("finetune_training_learning_rate",): 1e-4,
        ("finetune_training_gradient_norm",): 0.75,
        ("finetune_training_step_seconds_count",): 2,
        ("finetune_training_step_seconds_sum",): 0.5,
        ("finetune_training_step_seconds_bucket", "0.25"): 2,
        ("finetune_training_images_total",): 8,
        ("finetune_training_skipped_steps_total",): 1,
        ("finetune_checkpoints_total",): 1,
        ("finetune_checkpoint_seconds",): 1.5,
        ("finetune_judgement", "fidelity"): 0.25,
        ("finetune_judgement", "leak"): 0.0,
        ("finetune_judgement_step",): 2,
        ("finetune_judgement_best_step",): 1,
        ("finetune_evaluation_seconds_total",): 5.0,
        ("finetune_phase", "Training"): 1,
        ("finetune_phase", "Starting"): 0,
        ("finetune_memory_bytes", "device"): 0,
        ("finetune_memory_bytes", "devicePeak"): 0,
        ("finetune_training_step_quantile_seconds", "0.5"): 0.25,
        ("finetune_training_step_quantile_seconds", "0.99"): 0.25,
        ("finetune_time_seconds_total", "step"): 0.5,
        ("finetune_time_seconds_total", "data"): 0,
        ("finetune_time_seconds_total", "checkpoint"): 0.25,
        ("finetune_time_seconds_total", "judging"): 5.0,
        ("finetune_time_seconds_total", "drawing"): 0,
    }
    assert {name: samples[name] for name in expected} == expected
    assert samples[("finetune_memory_bytes", "resident")] > 1 << 20


def test_a_port_that_is_taken_is_named() -> None:
    board, metrics = Board("run-1", "pod-1"), Metrics("team", "my-dog", "lora")
    with (
        serving(0, board, metrics.registry) as port,
        pytest.raises(RunError, match=rf"^port {port} cannot be served .*set FINETUNE_PORT to a free one"),
        serving(port, board, metrics.registry),
    ):
        pass


def test_lines_come_with_each_stage_and_at_most_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    listener = LogListener(clock=lambda: now)
    with caplog.at_level(logging.INFO, logger="finetune"):
        listener.stage("Training")
        for step in range(1, 101):
            listener.step(report(step))
            now += 0.5
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "Training",
        *(f"step {step} of 100" for step in (1, 21, 41, 61, 81, 100)),
    ]


def test_an_engine_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="finetune"):
        LogListener().planned(EngineReport("Captured", "Captured, micro-batches cut in 2", "it fits", 5 * 2**29))
    (record,) = caplog.records
    assert record.getMessage() == "engine: Captured, micro-batches cut in 2 (it fits; 2.5 GiB predicted)"
    assert record.engine == "Captured"


def test_a_judgement_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="finetune"):
        LogListener().judged(judged(20, 10, fidelity=0.9375, leak=0.04))
        LogListener().judged(judged(20, None, fidelity=0.5))
    assert [record.getMessage() for record in caplog.records] == [
        "step 20 was judged: fidelity 0.938, leak 0.04; the best so far is step 10",
        "step 20 was judged: fidelity 0.5",
    ]
    assert caplog.records[0].judgement == {"fidelity": 0.9375, "leak": 0.04}


def test_before_a_judgement_there_is_none() -> None:
    text = generate_latest(Metrics("team", "my-dog", "lora").registry).decode()
    assert "finetune_judgement_best_step{" not in text, "no step is the best of none"
    assert "finetune_judgement{" not in text


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    metrics = Metrics("team", "my-dog", "lora")
    metrics.judged(judged(1, 1, **dict.fromkeys(FIGURES, 0.5)))
    for step in (1, 2):
        metrics.step(replace(report(step), ideal_seconds=0.1))
    known = set(re.findall(r"^(finetune_\w+)", generate_latest(metrics.registry).decode(), re.MULTILINE))
    queries = [query for _, query in dashboard_queries(namespace="team", finetunejob="my-dog")]
    asked = {name for query in queries for name in re.findall(r"finetune_\w+", query)}
    assert {name for name in asked if not name.startswith("finetune_operator_")} <= known
    named = {
        name for query in queries for names in re.findall(r'figure=~"([\w|]+)"', query) for name in names.split("|")
    }
    assert named < set(FIGURES)


def test_json_lines_carry_figures_and_the_runs_name(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        configure_logging("json", {"job": "team/my-dog"})
        listener = LogListener()
        listener.stage("Training")
        listener.step(report(1))
        first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    finally:
        logging.basicConfig(force=True)
    assert (first["level"], first["stage"], first["job"]) == ("INFO", "Training", "team/my-dog")
    assert (second["step"], second["loss"], second["images_per_second"]) == (1, 0.5, 16.0)


def test_the_bar_shows_step_loss_speed_and_time_left() -> None:
    screen = io.StringIO()
    with ProgressBar(Console(file=screen, force_terminal=True, width=120, color_system=None)) as bar:
        bar.stage("Fetching")
        bar.work(3, 5, "files")
        bar.stage("Training")
        bar.step(report(50))
        bar.message("a line for people")
        bar.stage("Done")
    text = screen.getvalue()
    for part in (
        "Fetching base model and pictures",
        "3/5",
        "Training",
        "50/100",
        "loss 0.5000, 16.0 images/s, 0:12 left",
    ):
        assert part in text
    assert "a line for people" in text


@pytest.mark.parametrize(
    ("error", "outcome", "message"),
    [
        (ConfigurationError("spec.output.uri is wrong"), "BadConfiguration", "spec.output.uri is wrong"),
        (DataError("1.png is no picture"), "BadData", "1.png is no picture"),
        (Interrupted("stopped at step 3"), "Interrupted", "stopped at step 3"),
        (RunError("the store does not answer"), "Error", "the store does not answer"),
        (KeyError("whatever a library says may hold a secret"), "Error", "KeyError, see the log of the pod"),
    ],
)
def test_the_last_word_says_how_it_ended(error: Exception, outcome: str, message: str) -> None:
    result = failure("run-1", error, 3, 0.5, None)
    assert result == Result.model_validate(
        {"runUid": "run-1", "outcome": outcome, "message": message, "step": 3, "loss": 0.5}
    )


def test_the_last_word_fits_into_three_kibibytes() -> None:
    result = failure("run-1", DataError("\N{GRINNING FACE}" * 5000), 3, 0.5, None)
    data = encode(result)
    assert len(data) <= LIMIT
    read = Result.model_validate_json(data)
    assert (read.outcome, read.step) == ("BadData", 3)
    assert read.message.startswith("\N{GRINNING FACE}" * 100)


def test_a_success_fits_too_whatever_there_is_to_tell() -> None:
    """What the manifest says as well is left out before the place of the manifest is."""
    figures = {f"figure{number}": 1 / 3 for number in range(14)}
    told = {"judgement": {"step": 40, "figures": figures}, "weights": ("embeddings/" + "w" * 220,) * 8}
    result = Result.model_validate({"runUid": "run-1", "outcome": "Succeeded", "uri": "s3://m/" + "p" * 800, **told})
    read = Result.model_validate_json(encode(result))
    assert (read.judgement, read.weights) == (None, result.weights)
    assert read.uri == result.uri
    many = result.model_copy(update={"weights": ("embeddings/" + "w" * 200,) * 16})
    read = Result.model_validate_json(encode(many))
    assert (read.outcome, read.weights, read.uri) == ("Succeeded", (), result.uri)


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as reply:
        return reply.read().decode()
