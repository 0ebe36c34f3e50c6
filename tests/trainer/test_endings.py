"""How a trainer ends, as a process: exit code and words, wherever a signal, an outage or SIGKILL finds it; and what it
leaves in the store. Everything here is real: the process, the S3 server, and the wire between them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.runs import Ended, Pod, spec_in_s3
from support.s3_server import S3Server
from support.wire import Wire, wire_to
from transformers import CLIPTextConfig, CLIPTextModel

SECONDS = 300
"""Deadline of what takes seconds on an idle machine."""


@pytest.fixture
def uploaded(s3: S3Server, bucket: str, pictures: Path) -> str:
    s3.put(bucket, {f"pictures/{p.name}": p.read_bytes() for p in pictures.iterdir()})
    return bucket


@pytest.fixture
def wire(s3: S3Server) -> Iterator[Wire]:
    with wire_to(s3.endpoint) as wire:
        yield wire


def through(wire: Wire, bucket: str, model: Path, **training: object) -> dict[str, Any]:
    return spec_in_s3(S3Server(wire.endpoint), bucket, model, **training)


def finish(pod: Pod, process: subprocess.Popen[str]) -> Ended:
    output, _ = process.communicate(timeout=SECONDS)
    return pod.ended(process.returncode, output)


def held(wire: Wire, process: subprocess.Popen[str]) -> None:
    assert wire.held.wait(SECONDS), f"never came to it; the process ended with {process.poll()}"


def keys(s3: S3Server, bucket: str, prefix: str = "results/") -> set[str]:
    found = s3.client().list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return {item["Key"].removeprefix(prefix) for item in found}


def record(s3: S3Server, bucket: str, attempt: str) -> dict[str, Any]:
    reply = s3.client().get_object(Bucket=bucket, Key=f"results/attempts/{attempt}.json")
    return json.loads(reply["Body"].read())


def uploads(s3: S3Server, bucket: str) -> list[str]:
    return [item["Key"] for item in s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


def nothing_unreferenced(s3: S3Server, bucket: str) -> dict[str, Any]:
    """The manifest, once exactly the files that it names and the records of its attempts are there."""
    body = s3.client().get_object(Bucket=bucket, Key="results/manifest.json")["Body"].read()
    manifest: dict[str, Any] = json.loads(body)
    named = {file["path"] for file in manifest["files"]} | {f"attempts/{a['id']}.json" for a in manifest["attempts"]}
    assert keys(s3, bucket) == named | {"manifest.json"}
    assert uploads(s3, bucket) == []
    return manifest


@pytest.fixture(scope="module")
def away_for_good(
    s3: S3Server, pictures: Path, tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Pod, subprocess.Popen[str]]]:
    """A trainer whose store vanishes. Its patience takes a minute, in which the other tests run."""
    bucket = s3.bucket("away-for-good")
    s3.put(bucket, {"pictures/0.png": (pictures / "0.png").read_bytes()})
    with wire_to(s3.endpoint) as wire:
        pod = Pod(tmp_path_factory.mktemp("away"), through(wire, bucket, tiny_sd), uid="pod-1")
        wire.hold("/pictures/0.png")
        process = pod.start()
        held(wire, process)
        wire.cut()
        yield pod, process
    process.kill()
    process.wait(SECONDS)


@pytest.mark.usefixtures("away_for_good")
def test_sigterm_while_fetching(s3: S3Server, uploaded: str, wire: Wire, tiny_sd: Path, tmp_path: Path) -> None:
    pod = Pod(tmp_path, through(wire, uploaded, tiny_sd), uid="pod-1")
    wire.hold("/pictures/1.png")
    process = pod.start()
    held(wire, process)
    process.send_signal(signal.SIGTERM)
    wire.release()
    ended = finish(pod, process)
    assert (ended.code, ended.result.outcome) == (75, "Interrupted"), ended.output
    assert ended.result.message == "stopped while fetching; the same run begins anew"
    said = record(s3, uploaded, "pod-1")
    assert (said["exitCode"], said["stage"], "step" in said) == (75, "Fetching", False)


def test_sigterm_while_the_store_hangs(s3: S3Server, uploaded: str, wire: Wire, tiny_sd: Path, tmp_path: Path) -> None:
    """Nothing comes back to ask whether to stop; before SIGKILL the process leaves all the same."""
    pod = Pod(tmp_path, through(wire, uploaded, tiny_sd), uid="pod-1", grace_seconds=2)
    wire.hold("/pictures/1.png")
    process = pod.start()
    held(wire, process)
    process.send_signal(signal.SIGTERM)
    ended = finish(pod, process)
    assert (ended.code, ended.result.outcome) == (75, "Interrupted"), ended.output
    assert ended.result.message == (
        "stopped while Fetching: the 2 s of grace did not suffice to come to an end; the same run goes on from its "
        "last checkpoint"
    )
    assert record(s3, uploaded, "pod-1")["exitCode"] == 75


def test_sigterm_while_drawing_class_pictures(s3: S3Server, uploaded: str, tiny_sd: Path, tmp_path: Path) -> None:
    spec = spec_in_s3(s3, uploaded, tiny_sd)
    spec["method"]["lora"]["priorPreservation"] = {
        "classPrompt": "a dog",
        "classImages": {"count": 1000, "inferenceSteps": 2, "batchSize": 1},
    }
    pod = Pod(tmp_path, spec, uid="pod-1")
    process = pod.start()
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if "class pictures" in json.loads(line)["message"] and json.loads(line).get("total"):
            process.send_signal(signal.SIGTERM)
            break
    rest, _ = process.communicate(timeout=SECONDS)
    ended = pod.ended(process.returncode, output + rest)
    assert (ended.code, ended.result.outcome) == (75, "Interrupted"), ended.output
    assert ended.result.message.endswith("of 1000 class pictures; they are kept")
    assert record(s3, uploaded, "pod-1")["stage"] == "DrawingClassImages"


def test_sigterm_while_publishing_and_a_store_that_is_away_for_twenty_seconds(
    s3: S3Server, uploaded: str, wire: Wire, tiny_sd: Path, tmp_path: Path
) -> None:
    """The first attempt cannot come to an end in its grace; the second meets an outage, a third would find it done."""
    spec = through(wire, uploaded, tiny_sd)
    first = Pod(tmp_path, spec, uid="pod-1", grace_seconds=4)
    wire.hold("PUT /" + uploaded + "/results/attempts/pod-1/report.html")
    process = first.start()
    held(wire, process)
    process.send_signal(signal.SIGTERM)
    stopped = finish(first, process)
    assert (stopped.code, stopped.result.outcome) == (75, "Interrupted"), stopped.output
    assert stopped.result.message.startswith("stopped while Publishing: the 4 s of grace")
    assert stopped.result.step == 5
    assert any(key.startswith("attempts/pod-1/") for key in keys(s3, uploaded))
    assert "manifest.json" not in keys(s3, uploaded)
    wire.release()

    second = Pod(tmp_path, spec, uid="pod-2", grace_seconds=4)
    wire.hold("PUT /" + uploaded + "/results/attempts/pod-2/report.html")
    process = second.start()
    held(wire, process)
    left = keys(s3, uploaded)
    assert not any(key.startswith("attempts/pod-1/") for key in left), "removed before: it said that it had ended"
    assert "attempts/pod-1.json" in left
    wire.cut()
    wire.release()
    threading.Timer(20, wire.mend).start()
    done = finish(second, process)
    assert (done.code, done.result.outcome, done.result.resumed_from_step) == (0, "Succeeded", 5), done.output
    assert "trying again in" in done.output
    manifest = nothing_unreferenced(s3, uploaded)
    assert [(a["id"], a.get("exitCode"), a.get("lostSteps")) for a in manifest["attempts"]] == [
        ("pod-1", 75, 0),
        ("pod-2", None, None),
    ]


@pytest.fixture(scope="module")
def wide_sd(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a text encoder whose file is uploaded in several parts."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    shutil.copytree(tiny_sd, folder)
    config = CLIPTextConfig.from_pretrained(folder / "text_encoder")
    config.intermediate_size = 400_000
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


def test_what_killed_attempts_left_is_gone_in_the_end(
    s3: S3Server, uploaded: str, wire: Wire, wide_sd: Path, tmp_path: Path
) -> None:
    """One is killed in the middle of its last checkpoint, one in the middle of a multipart upload of the results. At
    which steps there were checkpoints before is up to the store: none stops the training."""
    spec = through(wire, uploaded, wide_sd)
    spec["method"] = {"dreamBooth": {"prompt": "a photo of sks dog"}}
    spec["checkpoints"] = {"everySteps": 2}
    spec["validation"] = {"prompts": ["a photo of sks dog"], "imagesPerPrompt": 1, "inferenceSteps": 1}
    for uid, where, what in (
        ("pod-1", "PUT /" + uploaded + "/results/checkpoints/run-1/00000005-pod-1/weights", "checkpoints/"),
        ("pod-2", "partNumber=2", "attempts/pod-2/"),
    ):
        wire.hold(where)
        pod = Pod(tmp_path, spec, uid=uid)
        process = pod.start()
        held(wire, process)
        process.kill()
        process.communicate(timeout=SECONDS)
        wire.release()
        assert any(key.startswith(what) for key in keys(s3, uploaded))
        assert "exitCode" not in record(s3, uploaded, uid), "it could not say that it ended"
    assert uploads(s3, uploaded) == [
        "results/attempts/pod-2/pipeline/text_encoder/model.safetensors",
    ]
    assert "checkpoints/run-1/00000005-pod-1/optimizer.safetensors" in keys(s3, uploaded)

    done = Pod(tmp_path, spec, uid="pod-3").run()
    assert (done.code, done.result.outcome, done.result.resumed_from_step) == (0, "Succeeded", 5), done.output
    manifest = nothing_unreferenced(s3, uploaded)
    assert [(a["id"], a.get("resumedFromStep"), a.get("lostSteps")) for a in manifest["attempts"]] == [
        ("pod-1", None, manifest["attempts"][0]["lostSteps"]),
        ("pod-2", manifest["attempts"][1]["resumedFromStep"], 0),
        ("pod-3", 5, None),
    ]
    assert manifest["attempts"][1]["resumedFromStep"] in (2, 3, 4)
    assert manifest["attempts"][0]["atLeast"] is True


def test_a_store_that_stays_away_is_a_failure_that_may_pass(
    away_for_good: tuple[Pod, subprocess.Popen[str]],
) -> None:
    ended = finish(*away_for_good)
    assert (ended.code, ended.result.outcome) == (1, "Error"), ended.output
    assert "cannot be reached for s3://away-for-good/pictures/" in ended.result.message
    assert ended.result.message.endswith("if it stays so, check spec.dataset.storage.endpoint")
    assert ended.output.count("trying again in") > 3
