"""Handles on what runs in the kind cluster: kubectl, the API server, S3, Prometheus, and a test's own namespace."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from kubernetes import client, config

from support.waiting import Object, Watched

S3_ENDPOINT = "http://127.0.0.1:30070"
S3_ENDPOINT_IN_CLUSTER = "http://s3.finetune-demo.svc:7070"
PROMETHEUS = "http://127.0.0.1:30090"
OPERATOR_NAMESPACE = "finetune-system"


@dataclass(frozen=True)
class Cluster:
    """The whole cluster."""

    kubeconfig: Path

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Standard output of kubectl. Raises AssertionError with its standard error."""
        done = subprocess.run(
            ["kubectl", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=os.environ | {"KUBECONFIG": str(self.kubeconfig)},
        )
        if done.returncode and check:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout if done.returncode == 0 else done.stdout + done.stderr

    @cached_property
    def api(self) -> client.ApiClient:
        return config.new_client_from_config(str(self.kubeconfig))

    @cached_property
    def s3_keys(self) -> dict[str, str]:
        """AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the demo's server."""
        secret = client.CoreV1Api(self.api).read_namespaced_secret("s3-credentials", "default")
        return {key: base64.b64decode(value).decode() for key, value in secret.data.items()}

    @cached_property
    def s3(self) -> Any:
        """A boto3 client of the demo's server."""
        return boto3.client(
            "s3",
            endpoint_url=S3_ENDPOINT,
            region_name="us-east-1",
            aws_access_key_id=self.s3_keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.s3_keys["AWS_SECRET_ACCESS_KEY"],
            config=Config(s3={"addressing_style": "path"}, connect_timeout=5, read_timeout=30),
        )


def manifest(*objects: Object) -> str:
    """What `kubectl apply` takes. In JSON, since kubectl takes some of PyYAML's plain strings (12e4) for numbers."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


@dataclass(frozen=True)
class Namespace:
    """A namespace of one test, under the restricted Pod Security Standard, with the Secret s3-credentials."""

    name: str
    cluster: Cluster

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return self.cluster.kubectl("--namespace", self.name, *arguments, stdin=stdin, check=check)

    def apply(self, *objects: Object) -> None:
        self.kubectl("apply", "--filename", "-", stdin=manifest(*objects))

    def job(self, name: str) -> Watched:
        """The FineTuneJob ``name``, to be waited for."""
        return Watched(self.cluster.api, self.name, name)

    def get(self, *arguments: str) -> Any:
        """``kubectl get ... -o json``, parsed."""
        return json.loads(self.kubectl("get", *arguments, "--output", "json"))

    def pods(self, job: str) -> list[dict[str, Any]]:
        """The pods of the FineTuneJob ``job``, oldest first."""
        found = self.get("pods", "--selector", f"finetune.dev/job={job}")["items"]
        return sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def events(self, name: str) -> list[dict[str, Any]]:
        """Events about objects called ``name``, oldest first."""
        found = self.get("events", "--field-selector", f"involvedObject.name={name}")["items"]
        return sorted(found, key=lambda event: event["metadata"]["creationTimestamp"])

    def empty_of(self, job: str) -> bool:
        """True when nothing that belongs to the FineTuneJob ``job`` is left."""
        kinds = "jobs.batch,pods,services,configmaps"
        return not self.get(kinds, "--selector", f"finetune.dev/job={job}")["items"]

    def story(self) -> str:
        """All that helps to see what went wrong: the jobs, the pods and their logs, events, the operator's log."""
        asked = [
            ("get", "finetunejobs", "--output", "yaml"),
            ("get", "jobs.batch,pods,services,configmaps", "--output", "wide"),
            ("describe", "pods"),
            ("get", "events", "--sort-by", ".metadata.creationTimestamp"),
            ("logs", "--selector", "app.kubernetes.io/name=finetune-trainer", "--tail", "80", "--prefix"),
        ]
        parts = [f"$ kubectl -n {self.name} {' '.join(a)}\n{self.kubectl(*a, check=False)}" for a in asked]
        operator = ("--namespace", OPERATOR_NAMESPACE, "logs", "deployment/finetune-operator", "--tail", "120")
        parts.append(f"$ kubectl {' '.join(operator)}\n{self.cluster.kubectl(*operator, check=False)}")
        return "\n".join(parts)


@contextmanager
def fresh_namespace(cluster: Cluster, purpose: str) -> Iterator[Namespace]:
    """A namespace under the restricted Pod Security Standard, with the credentials of the demo's S3 server."""
    slug = re.sub(r"[^a-z0-9]+", "-", purpose.lower()).strip("-")[:40].rstrip("-")
    made = Namespace(f"e2e-{slug}-{secrets.token_hex(2)}", cluster)
    cluster.kubectl("create", "namespace", made.name)
    cluster.kubectl("label", "namespace", made.name, "pod-security.kubernetes.io/enforce=restricted")
    made.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s3-credentials"},
            "stringData": cluster.s3_keys,
        }
    )
    try:
        yield made
    finally:
        cluster.kubectl("delete", "namespace", made.name, "--wait=false")
