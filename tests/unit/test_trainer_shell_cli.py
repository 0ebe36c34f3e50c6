"""The command line: what it says of bad files, line by line, how it exits, and that it says so without torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from finetune_trainer.cli import app
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: my-dog
spec:
  baseModel:
    uri: builtin://tiny-shapes
  method:
    lora:
      prompt: a photo of sks dog
  dataset:
    uri: file://./pictures
  training:
    steps: 10
  output:
    uri: file://./results
"""
PROFILE = """\
---
apiVersion: finetune.dev/v1alpha1
kind: FineTuneProfile
metadata:
  name: cpu
spec:
  defaults:
    training: {batchSize: 3, learningRate: 2e-3}
  limits: {maxSteps: 100}
"""
HEAVY = ("torch", "diffusers", "transformers", "boto3", "peft", "huggingface_hub", "numpy", "PIL", "jinja2")


def invoke(command: str, text: str, folder: Path, *options: str) -> tuple[int, str]:
    """Exit code and output of `finetune <command> job.yaml` in `folder`."""
    (folder / "job.yaml").write_text(text)
    result = CliRunner().invoke(app, [command, "job.yaml", *options])
    return result.exit_code, result.output


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


BAD = {
    "out of bounds": (
        ("steps: 10", "steps: 0"),
        ["job.yaml:14: spec.training.steps is 0: must be at least 1"],
    ),
    "several at once": (
        ("steps: 10", "steps: many\n    batchSize: 2000\n    seed: 1.5"),
        [
            'job.yaml:14: spec.training.steps is "many": must be a whole number',
            "job.yaml:15: spec.training.batchSize is 2000: must be at most 1024",
            "job.yaml:16: spec.training.seed is 1.5: must be a whole number",
        ],
    ),
    "a misspelt field": (
        ("steps: 10", "stpes: 10"),
        ["job.yaml:14: spec.training.stpes: there is no such field; did you mean steps?"],
    ),
    "a field in snake_case": (
        ("steps: 10", "batch_size: 2"),
        ["job.yaml:14: spec.training.batch_size: there is no such field; did you mean batchSize?"],
    ),
    "a field like no other": (
        ("prompt: a photo of sks dog", "prompt: a\n      zzz: 1"),
        [
            "job.yaml:11: spec.method.lora.zzz: there is no such field; there are prompt, rank, alpha, dropout, "
            "targets, useDora, useRslora, trainTextEncoder, textEncoderLearningRate, priorPreservation, continueFrom, "
            "tokens"
        ],
    ),
    "a missing field": (
        ("      prompt: a photo of sks dog", "      rank: 4"),
        ["job.yaml:9: spec.method.lora.prompt: missing; add it"],
    ),
    "a missing section": (
        ("  output:\n    uri: file://./results\n", ""),
        ["job.yaml:5: spec.output: missing; add it"],
    ),
    "a choice in the wrong case": (
        ("steps: 10", "scheduler: {name: cosine}"),
        [
            "job.yaml:14: spec.training.scheduler.name is \"cosine\": must be 'Constant', 'Linear' or 'Cosine'; "
            "did you mean Cosine?"
        ],
    ),
    "text for true": (
        ("steps: 10", 'deterministic: "yes"'),
        ['job.yaml:14: spec.training.deterministic is "yes": must be true or false'],
    ),
    "a list for a mapping": (
        ("  training:\n    steps: 10", "  training: [10]"),
        ["job.yaml:13: spec.training is [10]: must be a mapping of fields"],
    ),
    "an item of a list": (
        ("steps: 10", 'steps: 10\n  validation:\n    prompts: ["a dog", ""]'),
        ['job.yaml:16: spec.validation.prompts[1] is "": must not be empty'],
    ),
    "what is not carried out yet": (
        ("uri: builtin://tiny-shapes", "uri: builtin://tiny-shapes\n    vaeUri: hf://a/vae"),
        [
            'job.yaml:8: spec.baseModel.vaeUri is "hf://a/vae": vaeUri is not carried out yet; the VAE of the base '
            "model is used, remove the field"
        ],
    ),
    "two rules broken at once": (
        ("steps: 10", "scheduler: {warmupSteps: 10}\n    epochs: 2\n    steps: 10"),
        [
            "job.yaml:13: spec.training: set at most one of steps, epochs",
            "job.yaml:13: spec.training: scheduler.warmupSteps must be below steps: the learning rate would never "
            "arrive; use fewer warm-up steps",
        ],
    ),
    "the only item of a list": (
        (
            "      prompt: a photo of sks dog",
            "      prompt: <a>\n      tokens: [{placeholder: <a>, initialEmbeddingUri: x}]",
        ),
        [
            'job.yaml:11: spec.method.lora.tokens[0].initialEmbeddingUri is "x": initialEmbeddingUri must be '
            "s3://bucket/path/file"
        ],
    ),
    "no technique": (
        ("    lora:\n      prompt: a photo of sks dog", "    {}"),
        ["job.yaml:8: spec.method: set exactly one of dreamBooth, lora, textualInversion, hypernetwork"],
    ),
    "a scheme that is not known": (
        ("uri: file://./pictures", "uri: ftp://pictures"),
        ['job.yaml:12: spec.dataset.uri is "ftp://pictures": uri must be s3://bucket/prefix/ or pvc://claim/path'],
    ),
    "a volume of a cluster": (
        ("uri: file://./pictures", "uri: pvc://claim/pictures"),
        [
            'job.yaml:12: spec.dataset.uri is "pvc://claim/pictures": a volume of a cluster cannot be reached from '
            "here; use file:// or s3://"
        ],
    ),
    "no name": (("  name: my-dog", "  labels: {}"), ["job.yaml:3: metadata.name: missing; add it"]),
    "a bad name": (
        ("name: my-dog", "name: My_Dog"),
        [
            'job.yaml:4: metadata.name is "My_Dog": must have at most 40 characters: lower-case letters, digits and '
            "'-', beginning with a letter and ending with a letter or digit, since Services and pods are named after it"
        ],
    ),
    "a profile that is not there": (
        ("spec:\n", "spec:\n  profileName: gpu\n"),
        [
            'job.yaml:6: spec.profileName is "gpu": there is no cluster here to look it up; give its YAML with '
            "--profile FILE, or remove the field"
        ],
    ),
    "values that contradict each other": (
        ("steps: 10", "steps: 10\n    scheduler: {name: Linear, warmupSteps: 10}"),
        [
            "job.yaml:13: spec.training: scheduler.warmupSteps must be below steps: the learning rate would never "
            "arrive; use fewer warm-up steps"
        ],
    ),
    "a key that stands twice": (
        ("steps: 10", "steps: 10\n    seed: 1\n    steps: 20"),
        ["job.yaml:16: spec.training.steps: stands twice; remove one"],
    ),
    "another kind": (
        ("kind: FineTuneJob", "kind: Pod"),
        ['job.yaml:2: kind is "Pod": must be FineTuneJob, FineTuneProfile, TrainingRun'],
    ),
    "no YAML": (
        ("  baseModel:\n", "  baseModel: [\n"),
        ["job.yaml:8:9: not valid YAML: expected ',' or ']', but got ':'"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_with_line_field_value_and_remedy(name: str, tmp_path: Path) -> None:
    (old, new), lines = BAD[name]
    assert JOB.count(old) == 1
    for command in ("validate", "render", "run"):
        code, output = invoke(command, JOB.replace(old, new), tmp_path)
        assert (code, output.splitlines()) == (78, [f"error: {line}" for line in lines])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["validate", "nothing.yaml"])
    assert (result.exit_code, result.output) == (78, "error: nothing.yaml: cannot be read: No such file or directory\n")


def test_a_good_file_and_every_example_for_a_laptop(tmp_path: Path) -> None:
    assert invoke("validate", JOB, tmp_path) == (
        0,
        "job.yaml: lora of builtin://tiny-shapes, nothing is wrong with it\n",
    )
    assert CliRunner().invoke(app, ["validate", str(ROOT / "examples/local.yaml")]).exit_code == 0


def test_render_fills_in_everything_and_reads_its_own_output(tmp_path: Path) -> None:
    code, output = invoke("render", JOB + PROFILE, tmp_path)
    run = json.loads(output)
    assert code == 0
    assert (run["training"]["batchSize"], run["training"]["learningRate"]) == (3, 2e-3), "from the profile"
    assert run["dataset"]["uri"] == f"file://{tmp_path}/pictures", "relative to the current folder"
    assert run["validation"]["prompts"] == ["a photo of sks dog"]
    assert run["identity"]["namespace"] == "local"
    assert invoke("render", output, tmp_path) == (0, output)


def test_the_same_name_and_output_are_the_same_run(tmp_path: Path) -> None:
    def uid(text: str) -> str:
        return json.loads(invoke("render", text, tmp_path)[1])["identity"]["uid"]

    assert uid(JOB) == uid(JOB.replace("steps: 10", "steps: 20"))
    assert uid(JOB) != uid(JOB.replace("my-dog", "my-cat"))
    assert uid(JOB) != uid(JOB.replace("results", "elsewhere"))


def test_a_profile_may_come_from_another_file_and_its_limits_hold(tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text(PROFILE)
    assert invoke("validate", JOB, tmp_path, "--profile", "profile.yaml")[0] == 0
    assert invoke("validate", JOB.replace("steps: 10", "steps: 101"), tmp_path, "--profile", "profile.yaml") == (
        78,
        "error: job.yaml: spec.training.steps is 101, FineTuneProfile cpu allows at most 100 (limits.maxSteps); "
        "use 100 or less\n",
    )


def test_two_jobs_in_a_file_are_refused(tmp_path: Path) -> None:
    assert invoke("run", f"{JOB}---\n{JOB}", tmp_path) == (
        78,
        "error: job.yaml: name one FineTuneJob and at most one FineTuneProfile, or one TrainingRun alone\n",
    )


def test_a_secret_cannot_be_read_without_a_cluster(tmp_path: Path) -> None:
    text = JOB.replace("uri: file://./results", "uri: s3://models/dog/\n    secretRef: {name: models}")
    code, output = invoke("run", text, tmp_path)
    assert code == 78
    assert output.startswith(
        "error: spec.output.secretRef.name is models, but there is no cluster here to read a Secret"
    )


def test_the_operators_digest_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = invoke("render", JOB, tmp_path)[1]
    actual = hashlib.sha256(run.encode()).hexdigest()
    monkeypatch.setenv("FINETUNE_RUN_SHA256", "0" * 64)
    assert invoke("run", run, tmp_path) == (
        78,
        f"error: FINETUNE_RUN_SHA256 is {'0' * 64}, but job.yaml has {actual}: it is not what the operator wrote; "
        "delete the job and create it anew\n",
    )


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["run", "bad.yaml"], ["validate", "good.yaml"]])
def test_help_and_errors_come_without_torch(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(JOB)
    (tmp_path / "bad.yaml").write_text(JOB.replace("steps: 10", "steps: 0"))
    program = (
        "import sys\n"
        "from finetune_trainer.cli import app\n"
        "try:\n    app(prog_name='finetune')\n"
        f"finally:\n    print('loaded:', [name for name in {HEAVY} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stderr
