"""One LoRA, from `kubectl apply` to weights that draw the subject."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from jobs import Results, condition, download, ended, example, has, step
from judging import PICTURES, base_pipeline, judge, lora_pipeline
from support.cluster import Cluster, Namespace, fresh_namespace
from support.prometheus import Prometheus, dashboard_queries
from support.waiting import eventually

# Beside what the example asks for: figures on the way and pictures with the result. Few, for a CPU draws them.
JUDGEMENT = {"imagesPerPrompt": 4, "everySteps": 125, "keepBest": False}
SAMPLES = {"prompts": ["a photo of a sks circle on a red background"], "imagesPerPrompt": 5, "inferenceSteps": 5}
# Of 64 pictures each: how much more often the subject must appear than with the base model.
FIDELITY_MARGIN = 0.5


@dataclass(frozen=True)
class Done:
    namespace: Namespace
    job: dict[str, Any]
    running: dict[str, Any]
    columns: str
    results: Results


@pytest.fixture(scope="module")
def lora(cluster: Cluster, s3: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    """The README's example, applied and followed to its end."""
    with fresh_namespace(cluster, "lora") as namespace:
        namespace.apply(example("finetunejob.yaml", namespace, judgement=JUDGEMENT, samples=SAMPLES))
        watched = namespace.job("figure")
        try:
            running = watched.until(lambda j: step(j) > 0 or ended(j), seconds=300, what="training")
            columns = namespace.kubectl("get", "finetunejobs")
            job = watched.until(ended, seconds=900, what="the end")
            assert has("Succeeded")(job), job["status"]
            yield Done(namespace, job, running, columns, download(s3, job, tmp_path_factory.mktemp("lora")))
        except BaseException:
            print(namespace.story())
            raise


def test_status_tells_the_way(lora: Done) -> None:
    assert lora.running["status"]["phase"] == "Running"
    progress = lora.running["status"]["progress"]
    assert 0 < progress["step"] <= progress["totalSteps"]
    assert float(progress["loss"]) > 0
    assert float(progress["imagesPerSecond"]) > 0

    status = lora.job["status"]
    assert status["phase"] == "Succeeded"
    assert status["progress"]["percent"] == "100%"
    assert condition(lora.job, "Accepted")["status"] == "True"
    assert [a["exitCode"] for a in status["attempts"]] == [0]
    assert status["resolved"]["image"].endswith("finetune-trainer:dev")
    assert status["resolved"]["profile"] == "cpu-tiny"


def test_columns_of_kubectl_get(lora: Done) -> None:
    header, row = lora.columns.splitlines()[:2]
    assert header.split() == ["NAME", "PHASE", "METHOD", "REASON", "PROGRESS", "LOSS", "AGE"]
    assert row.split()[:4] == ["figure", "Running", "lora", "Running"]


def test_each_transition_has_an_event(lora: Done) -> None:
    reasons = [event["reason"] for event in lora.namespace.events("figure")]
    for reason in ("Accepted", "Started", "Succeeded"):
        assert reason in reasons, reasons


def test_it_learned(lora: Done, capsys: pytest.CaptureFixture[str]) -> None:
    """The published file, loaded by Diffusers, draws the subject where the base model does not."""
    prompt = lora.job["spec"]["method"]["lora"]["prompt"]
    base, tuned = judge(base_pipeline(), prompt), judge(lora_pipeline(lora.results.weights), prompt)
    with capsys.disabled():
        print(f"\nsubject fidelity of {PICTURES} pictures: base {base.subject:.2f}, LoRA {tuned.subject:.2f}")
    assert tuned.subject >= base.subject + FIDELITY_MARGIN


def test_results_are_complete(lora: Done) -> None:
    names = {Path(file["path"]).name for file in lora.results.manifest["files"]}
    assert {"pytorch_lora_weights.safetensors", "report.html", "contact_sheet.png"} <= names
    assert lora.results.manifest["run"]["uid"] == lora.job["metadata"]["uid"]


def test_judgement_stands_in_status_and_samples_beside_the_weights(lora: Done) -> None:
    judgement = lora.job["status"]["judgement"]
    assert judgement["step"] == lora.job["status"]["progress"]["totalSteps"]
    assert {"fidelity", "leak", "drift"} <= judgement["figures"].keys()
    assert all(float(value) == float(value) for value in judgement["figures"].values())
    samples = [file["path"] for file in lora.results.manifest["files"] if "/samples/" in file["path"]]
    assert len([path for path in samples if path.endswith(".png") and "sheet" not in path]) == 5


def test_prometheus_has_loss_and_step(lora: Done, prometheus: Prometheus) -> None:
    start, end = _span(lora.job)
    for metric, last in (("loss", None), ("step", lora.job["status"]["progress"]["totalSteps"])):
        promql = f'finetune_training_{metric}{{namespace="{lora.namespace.name}", finetunejob="figure"}}'
        (series,) = prometheus.query_range(promql, start=start, end=end)
        assert len(series.points) > 1
        if last is not None:
            values = [value for _, value in series.points]
            assert values == sorted(values)
            assert 0 < values[-1] <= last


def test_every_panel_of_the_dashboard_has_data(lora: Done, prometheus: Prometheus) -> None:
    start, end = _span(lora.job)
    empty = {
        title
        for title, promql in dashboard_queries(namespace=lora.namespace.name, finetunejob="figure")
        if not prometheus.query_range(promql, start=start, end=end)
    }
    assert empty == {"Model FLOPs utilisation"}, "on a CPU there is none, and no other panel is empty"


def _span(job: dict[str, Any]) -> tuple[float, float]:
    status = job["status"]
    start, end = (datetime.fromisoformat(status[key]).timestamp() for key in ("startTime", "completionTime"))
    return start, end


def test_deleting_the_job_removes_all_it_owned(lora: Done) -> None:
    """Last in this file: afterwards nothing of the example is left but its results in S3."""
    lora.namespace.kubectl("delete", "finetunejob", "figure")

    def gone() -> None:
        assert lora.namespace.empty_of("figure")

    eventually(gone, seconds=120)
