"""`finetune run` as the operator starts it: a process of its own with files, environment and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api import FineTuneJobSpec, Result, RunIdentity, resolve

from support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

FINETUNE = [sys.executable, "-m", "finetune_trainer"]


@dataclass
class Pod:
    """A folder that plays a pod's disks: run.json, credentials, scratch, termination log."""

    folder: Path
    spec: dict[str, Any]
    secret_key: str = SECRET_KEY
    uid: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    run_uid: str = "run-1"
    grace_seconds: int | None = None

    @property
    def run_file(self) -> Path:
        return self.folder / "run.json"

    @property
    def environment(self) -> dict[str, str]:
        disks = self.folder / self.uid
        disks.mkdir(parents=True, exist_ok=True)
        for role in ("base-model", "dataset", "output"):
            secret = disks / "credentials" / role
            secret.mkdir(parents=True, exist_ok=True)
            (secret / "AWS_ACCESS_KEY_ID").write_text(ACCESS_KEY)
            (secret / "AWS_SECRET_ACCESS_KEY").write_text(self.secret_key + "\n")
        identity = RunIdentity(name="my-dog", namespace="team", uid=self.run_uid)
        run = resolve(FineTuneJobSpec.model_validate(self.spec), None, identity)
        if self.grace_seconds is not None:
            run = run.model_copy(update={"grace_seconds": self.grace_seconds})
        self.run_file.write_text(run.to_json())
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "FINETUNE_"))},
            "FINETUNE_RUN_SHA256": hashlib.sha256(self.run_file.read_bytes()).hexdigest(),
            "FINETUNE_POD_UID": self.uid,
            "FINETUNE_POD_NAME": f"my-dog-{self.uid}",
            "FINETUNE_WORK_DIR": str(disks / "work"),
            "FINETUNE_CREDENTIALS_DIR": str(disks / "credentials"),
            "FINETUNE_TERMINATION_LOG": str(disks / "termination-log"),
            "FINETUNE_LOG_FORMAT": "json",
            "FINETUNE_PORT": "0",
            "HOME": str(disks),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, **changed: str) -> subprocess.Popen[str]:
        command = [*FINETUNE, "run", str(self.run_file)]
        environment = {**self.environment, **changed}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, **changed: str) -> Ended:
        process = self.start(**changed)
        output, _ = process.communicate(timeout=300)
        return self.ended(process.returncode, output)

    def ended(self, code: int, output: str) -> Ended:
        path = self.folder / self.uid / "termination-log"
        assert path.is_file(), f"exit code {code} without a termination message: {output}"
        message = path.read_bytes()
        assert len(message) <= 3 * 1024
        return Ended(code, output, Result.model_validate_json(message))


@dataclass(frozen=True)
class Ended:
    code: int
    output: str
    result: Result

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log; every line of it is a JSON object."""
        return [json.loads(line) for line in self.output.splitlines()]


def spec_in_s3(s3: S3Server, bucket: str, model: Path, **training: object) -> dict[str, Any]:
    """A job whose pictures come from s3://<bucket>/pictures/ and whose results go to s3://<bucket>/results/."""
    access = {"secretRef": {"name": "s3-credentials"}, "storage": {"endpoint": s3.endpoint}}
    return {
        "baseModel": {"uri": f"file://{model}"},
        "method": {"lora": {"prompt": "a photo of sks dog", "rank": 2}},
        "dataset": {"uri": f"s3://{bucket}/pictures/", **access},
        "training": {"steps": 5, **training},
        "checkpoints": {"everySteps": 1000},
        "validation": {"prompts": ["a photo of sks dog", "a circle"], "imagesPerPrompt": 2, "inferenceSteps": 2},
        "output": {"uri": f"s3://{bucket}/results/", **access},
    }
