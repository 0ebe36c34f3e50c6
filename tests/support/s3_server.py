"""A real S3 server (versitygw) on a free port of this machine, over a temporary folder."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import stamina
from finetune_api.storage import Storage
from finetune_trainer.credentials import Credentials, Role
from finetune_trainer.s3 import S3Location

from support.need import missing

ACCESS_KEY = "finetune-test"
SECRET_KEY = "the-secret-that-must-never-be-shown"


@dataclass(frozen=True)
class S3Server:
    endpoint: str

    @property
    def storage(self) -> Storage:
        return Storage(endpoint=self.endpoint)

    def client(self) -> Any:
        return _client(self.endpoint)

    def bucket(self, name: str) -> str:
        self.client().create_bucket(Bucket=name)
        return name

    def put(self, bucket: str, files: dict[str, bytes]) -> None:
        for key, data in files.items():
            self.client().put_object(Bucket=bucket, Key=key, Body=data)

    def credentials(self, role: Role = Role.OUTPUT, secret_key: str = SECRET_KEY, **changed: str) -> Credentials:
        values = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": secret_key, **changed}
        return Credentials(role, "s3-credentials", {k: v for k, v in values.items() if v}, ambient=False)

    def location(self, uri: str, credentials: Credentials | None = None) -> S3Location:
        return S3Location.parse(uri, credentials or self.credentials(), self.storage)


@cache
def _client(endpoint: str) -> Any:
    """One for all: boto3 takes a third of a second to make it."""
    return boto3.session.Session(ACCESS_KEY, SECRET_KEY).client("s3", endpoint_url=endpoint, region_name="us-east-1")


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    program = shutil.which("versitygw")
    if program is None:
        missing("an S3 server needs versitygw on the PATH")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--port", f"127.0.0.1:{port}", "--access", ACCESS_KEY, "--secret", SECRET_KEY, "--quiet"]
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = subprocess.Popen([*command, "posix", str(folder)], stdout=log, stderr=log)
    try:
        for attempt in stamina.retry_context(on=OSError, timeout=20, attempts=None, wait_initial=0.05, wait_max=0.5):
            with attempt, socket.create_connection(("127.0.0.1", port)):
                pass
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(10)
