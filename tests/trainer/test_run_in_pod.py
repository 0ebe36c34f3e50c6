"""A whole run as a pod does it: pictures and results in a real S3 server, told by exit code and termination message."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest
from finetune_api import Progress
from prometheus_client.parser import text_string_to_metric_families
from support.runs import Ended, Pod, spec_in_s3
from support.s3_server import SECRET_KEY, S3Server


@pytest.fixture
def uploaded(s3: S3Server, bucket: str, pictures: Path) -> str:
    s3.put(bucket, {f"pictures/{p.name}": p.read_bytes() for p in pictures.iterdir()})
    return bucket


def objects(s3: S3Server, bucket: str, prefix: str = "results/") -> dict[str, bytes]:
    client = s3.client()
    keys = [o["Key"] for o in client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]
    return {k.removeprefix(prefix): client.get_object(Bucket=bucket, Key=k)["Body"].read() for k in keys}


def weights_of(s3: S3Server, bucket: str, ended: Ended) -> bytes:
    path, _ = ended.result.weights
    return objects(s3, bucket)[path]


def test_a_run_publishes_and_a_second_pod_finds_the_results(
    s3: S3Server, uploaded: str, tiny_sd: Path, tmp_path: Path
) -> None:
    pod = Pod(tmp_path, spec_in_s3(s3, uploaded, tiny_sd) | {"exports": {"everySteps": 2}}, uid="pod-1")
    ended = pod.run()
    assert (ended.code, ended.result.outcome, ended.result.step) == (0, "Succeeded", 5), ended.output

    published = objects(s3, uploaded)
    manifest = json.loads(published["manifest.json"])
    assert ended.result.manifest_sha256 == hashlib.sha256(published["manifest.json"]).hexdigest()
    assert ended.result.manifest_uri == f"s3://{uploaded}/results/manifest.json"
    assert {f["path"]: (f["size"], f["sha256"]) for f in manifest["files"]} == {
        path: (len(data), hashlib.sha256(data).hexdigest())
        for path, data in published.items()
        if path not in ("manifest.json", "attempts/pod-1.json")
    }, "exactly the files of the manifest are there: no probe, no checkpoints"
    assert [attempt["id"] for attempt in manifest["attempts"]] == ["pod-1"]
    record = json.loads(published["attempts/pod-1.json"])
    assert (record["exitCode"], record["step"], record["stage"]) == (0, 5, "Done")
    assert manifest["weights"] == [
        "attempts/pod-1/lora/pytorch_lora_weights.safetensors",
        "attempts/pod-1/lora/my-dog.safetensors",
    ]
    assert [(export["step"], export["weights"][0]) for export in manifest["exports"]] == [
        (step, f"exports/run-1/0000000{step}-pod-1/lora/pytorch_lora_weights.safetensors") for step in (2, 4)
    ]
    assert (manifest["run"]["uid"], manifest["dataset"]["files"]) == ("run-1", 3)
    assert b"data:image/png;base64," in published["attempts/pod-1/report.html"]
    assert {line["stage"] for line in ended.lines if "stage" in line} >= {"Fetching", "Training", "Publishing", "Done"}
    assert SECRET_KEY not in ended.output
    assert all(SECRET_KEY.encode() not in data for data in published.values())

    again = Pod(tmp_path, pod.spec, uid="pod-2").run()
    assert (again.code, again.result) == (0, ended.result)
    assert objects(s3, uploaded) == published


def test_a_terminated_run_goes_on_in_another_pod_as_if_nothing_had_been(
    s3: S3Server, uploaded: str, bucket: str, tiny_sd: Path, tmp_path: Path
) -> None:
    spec = spec_in_s3(s3, uploaded, tiny_sd, steps=150)
    first = Pod(tmp_path, spec, uid="pod-1")
    process = first.start()
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if json.loads(line).get("total_steps"):
            process.send_signal(signal.SIGTERM)
            break
    output += process.stdout.read()
    stopped = first.ended(process.wait(120), output)
    assert (stopped.code, stopped.result.outcome) == (75, "Interrupted"), stopped.output
    assert 1 <= stopped.result.step < 150
    assert stopped.result.message == (
        f"stopped at step {stopped.result.step} of 150; the same run goes on from step {stopped.result.step}"
    )
    assert "manifest.json" not in objects(s3, uploaded)

    resumed = Pod(tmp_path, spec, uid="pod-2").run()
    assert resumed.code == 0, resumed.output
    assert resumed.result.resumed_from_step == stopped.result.step
    published = objects(s3, uploaded)
    assert not [key for key in published if key.startswith("checkpoints/")], "cleared away in the end"
    first_said, second_said = json.loads(published["manifest.json"])["attempts"]
    assert (first_said["id"], first_said["exitCode"], first_said["lostSteps"]) == ("pod-1", 75, 0)
    assert (second_said["id"], second_said["resumedFromStep"]) == ("pod-2", stopped.result.step)
    assert b"2; 0 steps were done again" in published["attempts/pod-2/report.html"]
    assert f"attempt 1 (pod-1) ended with 75 at step {stopped.result.step}" in resumed.output

    whole_spec = {**spec, "output": {**spec["output"], "uri": f"s3://{uploaded}/whole/"}}
    whole = Pod(tmp_path, whole_spec, uid="pod-3", run_uid="run-2").run()
    path, _ = whole.result.weights
    assert objects(s3, uploaded, "whole/")[path] == weights_of(s3, uploaded, resumed)


def test_telemetry_is_served_while_the_pod_works(s3: S3Server, uploaded: str, tiny_sd: Path, tmp_path: Path) -> None:
    pod = Pod(tmp_path, spec_in_s3(s3, uploaded, tiny_sd, steps=100_000), uid="pod-1")
    process = pod.start()
    assert process.stdout is not None
    port = ""
    for line in process.stdout:
        found = json.loads(line)
        if "/progress" in found["message"]:
            port = found["message"].rpartition(" ")[2]
        if found.get("step"):
            break
    progress = Progress.model_validate_json(get(port, "progress"))
    metrics = {
        sample.name: sample
        for family in text_string_to_metric_families(get(port, "metrics").decode())
        for sample in family.samples
    }
    assert get(port, "healthz") == b"ok\n"
    process.send_signal(signal.SIGTERM)
    assert drained(process) == 75

    assert (progress.run_uid, progress.pod_uid, progress.stage) == ("run-1", "pod-1", "Training")
    assert 1 <= progress.step < progress.total_steps == 100_000
    labels = {"namespace": "team", "finetunejob": "my-dog", "method": "lora"}
    assert metrics["finetune_training_loss"].labels == labels
    assert metrics["finetune_training_step"].value >= progress.step
    assert metrics["finetune_training_steps"].value == 100_000


def get(port: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as reply:
        return reply.read()


def drained(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=120)
    return process.returncode


@pytest.mark.parametrize(
    ("pod", "changed", "code", "outcome", "message"),
    [
        (
            {"secret_key": "wrong"},
            {},
            78,
            "BadConfiguration",
            "does not accept spec.output.secretRef.name s3-credentials for s3://{bucket}/results/ "
            "(SignatureDoesNotMatch); correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in it",
        ),
        (
            {"output": "s3://no-such-bucket/results/"},
            {},
            78,
            "BadConfiguration",
            "has no bucket no-such-bucket; create the bucket or correct the name",
        ),
        (
            {},
            {"FINETUNE_RUN_SHA256": "0" * 64},
            78,
            "BadConfiguration",
            "it is not what the operator wrote; delete the job and create it anew",
        ),
        (
            {},
            {"FINETUNE_CREDENTIALS_DIR": "/nowhere"},
            78,
            "BadConfiguration",
            "spec.output.secretRef.name is s3-credentials, but that Secret does not exist in the job's namespace or "
            "has no key AWS_ACCESS_KEY_ID and no key AWS_SECRET_ACCESS_KEY; create it with these keys",
        ),
    ],
)
def test_bad_configuration_ends_before_anything_is_loaded(
    s3: S3Server,
    uploaded: str,
    tiny_sd: Path,
    tmp_path: Path,
    pod: dict[str, str],
    changed: dict[str, str],
    code: int,
    outcome: str,
    message: str,
) -> None:
    spec = spec_in_s3(s3, uploaded, tiny_sd)
    spec["output"]["uri"] = pod.get("output", spec["output"]["uri"])
    ended = Pod(tmp_path, spec, uid="pod-1", secret_key=pod.get("secret_key", SECRET_KEY)).run(**changed)
    assert (ended.code, ended.result.outcome) == (code, outcome)
    assert message.format(bucket=uploaded) in ended.result.message
    assert ended.lines[-1]["level"] == "ERROR"
    assert all(line.get("stage") is None for line in ended.lines)
    assert SECRET_KEY not in ended.output


def test_a_corrupt_picture_is_bad_data(s3: S3Server, uploaded: str, tiny_sd: Path, tmp_path: Path) -> None:
    s3.put(uploaded, {"pictures/broken.png": b"no picture at all"})
    ended = Pod(tmp_path, spec_in_s3(s3, uploaded, tiny_sd), uid="pod-1").run()
    assert (ended.code, ended.result.outcome) == (65, "BadData")
    assert "broken.png is not a PNG, JPEG or WebP picture" in ended.result.message


def test_what_nobody_foresaw_is_logged_in_full_but_told_in_short(
    s3: S3Server, uploaded: str, tiny_sd: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way of the scratch folder")
    ended = Pod(tmp_path, spec_in_s3(s3, uploaded, tiny_sd), uid="pod-1").run(
        FINETUNE_WORK_DIR=str(tmp_path / "file"), FINETUNE_CACHE_DIR=str(tmp_path / "cache")
    )
    assert (ended.code, ended.result.outcome) == (1, "Error")
    assert ended.result.message == "NotADirectoryError, see the log of the pod"
    assert "Traceback" in ended.lines[-1]["exc_info"]
