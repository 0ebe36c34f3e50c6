"""The operator as a process of its own, with exactly the rights that the chart gives it, and hands to play kubelet."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from finetune_operator.times import show
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from support.need import missing
from support.proxy import Right
from support.waiting import Watched, eventually

ROOT = Path(__file__).parents[2]
SYSTEM = "finetune-system"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
NOWHERE = {"finetune.dev/test": "nowhere"}
OF_A_POD = ("FINETUNE_OPERATOR_PORT", "FINETUNE_OPERATOR_LOG_FORMAT", "FINETUNE_OPERATOR_TRAINER_IMAGE")
"""Settings of the chart that suit a pod and not a process on the tests' machine."""
PORT = re.compile(r"probes and metrics at port (\d+)")


class ChartRights:
    """A kubeconfig whose user is the chart's service account with the chart's RBAC, and what else the chart says."""

    def __init__(self, admin: Path, folder: Path, release: str = "finetune-operator", **values: str) -> None:
        """`values`: of the chart."""
        self.path = folder / f"{release}-kubeconfig"
        if shutil.which("helm") is None:
            missing("helm, which renders the operator's RBAC, is not on the PATH")
        rbac = rendered(release, values, "rbac", "serviceaccount")
        deployment = yaml.safe_load(rendered(release, values, "deployment"))
        pod = deployment["spec"]["template"]["spec"]
        account = pod["serviceAccountName"]
        said = {entry["name"]: entry.get("value", "") for entry in pod["containers"][0]["env"]}
        self.environment = {name: value for name, value in said.items() if value and name not in OF_A_POD}
        self.rules = granted(rbac)
        namespace = yaml.safe_dump({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
        for documents in (namespace, rbac):
            # a control plane of a few seconds' age may refuse what it takes a moment later
            eventually(lambda documents=documents: _kubectl(admin, "apply", "-f", "-", given=documents), seconds=30)
        create = ("create", "token", account, "--namespace", SYSTEM, "--duration=2h")
        token = eventually(lambda: _kubectl(admin, *create), seconds=30).strip()
        mine = yaml.safe_load(admin.read_text())
        mine["users"] = [{"name": user["name"], "user": {"token": token}} for user in mine["users"]]
        self.path.write_text(yaml.safe_dump(mine))
        self.path.chmod(0o600)


def rendered(release: str, values: dict[str, str], *templates: str) -> str:
    """These templates of the chart, as YAML."""
    shown = [flag for name in templates for flag in ("--show-only", f"templates/{name}.yaml")]
    chosen = [flag for name, value in values.items() for flag in ("--set", f"{name}={value}")]
    where = ("--namespace", SYSTEM, "--kube-version", "1.34")
    command = ["helm", "template", release, ROOT / "charts/finetune-operator", *where, *shown, *chosen]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def granted(rbac: str) -> set[Right]:
    """Every right that the roles in this YAML give."""
    return {
        Right(group, resource, verb)
        for document in yaml.safe_load_all(rbac)
        for rule in (document or {}).get("rules", [])
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _kubectl(kubeconfig: Path, *arguments: str, given: str = "") -> str:
    """Standard output. Raises AssertionError with what kubectl says."""
    command = ["kubectl", "--kubeconfig", str(kubeconfig), *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}: {done.stderr.strip()}"
    return done.stdout


@dataclass
class Operator:
    """The operator's process; may be killed and started again."""

    kubeconfig: Path
    folder: Path
    progress_port: int
    settings: dict[str, str] = field(default_factory=dict)
    """Environment variables over those that suit the tests."""
    name: str = "operator"
    program: str = "from finetune_operator.main import main; main()"
    starts: int = 0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Returns when it is ready: everything was listed once."""
        self.starts += 1
        environment = os.environ | {
            "KUBECONFIG": str(self.kubeconfig),
            "FINETUNE_OPERATOR_HOST": "127.0.0.1",
            "FINETUNE_OPERATOR_PORT": "0",
            "FINETUNE_OPERATOR_LOG_FORMAT": "text",
            "FINETUNE_OPERATOR_LEASE_NAMESPACE": SYSTEM,
            "FINETUNE_OPERATOR_POD_NAME": f"{self.name}-{self.starts}",
            "FINETUNE_OPERATOR_PROGRESS_PORT": str(self.progress_port),
            "FINETUNE_OPERATOR_PROGRESS_SECONDS": "1",
            "PYTHONWARNINGS": "ignore",
            **self.settings,
        }
        command = [sys.executable, "-c", self.program]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        eventually(lambda: self.get("/readyz"), seconds=60, on=Exception)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}-{self.starts}.log"

    def get(self, path: str) -> str:
        """What the probe server answers. Raises OSError when it says no, or nothing."""
        found = PORT.search(self.log.read_text())
        assert found, "the operator does not listen yet"
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def health(self) -> tuple[int, str]:
        """Status and words of /healthz. Raises OSError when nothing answers."""
        try:
            return 200, self.get("/healthz")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def leads(self) -> bool:
        """Whether it says that it holds the Lease."""
        return "finetune_operator_leader 1.0" in self.get("/metrics")

    def kill(self) -> None:
        """No time for farewells."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM. Returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@contextmanager
def at_work(operator: Operator) -> Iterator[Operator]:
    """`operator`, started, and held to leave in order."""
    operator.start()
    yield operator
    code = operator.stop()
    print(operator.log.read_text()[-5000:])
    assert code == 0, "the operator leaves in order"


@dataclass
class Place:
    """A namespace under the restricted Pod Security Standard, with a profile of its own whose pods fit no node: the
    test says what becomes of them."""

    kubeconfig: Path
    name: str
    operator_class: str = ""

    @cached_property
    def api(self) -> client.ApiClient:
        return config.new_client_from_config(str(self.kubeconfig))

    @cached_property
    def core(self) -> client.CoreV1Api:
        return client.CoreV1Api(self.api)

    @cached_property
    def batch(self) -> client.BatchV1Api:
        return client.BatchV1Api(self.api)

    @cached_property
    def custom(self) -> client.CustomObjectsApi:
        return client.CustomObjectsApi(self.api)

    def make(self) -> None:
        self.core.create_namespace({"metadata": {"name": self.name, "labels": RESTRICTED}})
        self.make_profile(self.name)

    def clear(self) -> None:
        self.custom.delete_cluster_custom_object("finetune.dev", "v1alpha1", "finetuneprofiles", self.name)
        self.core.delete_namespace(self.name)

    def make_profile(self, name: str, **spec: object) -> None:
        resources = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}}
        body = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneProfile",
            "metadata": {"name": name},
            "spec": {"image": "trainer.invalid/none:1", "resources": resources, "nodeSelector": NOWHERE, **spec},
        }
        self.custom.create_cluster_custom_object("finetune.dev", "v1alpha1", "finetuneprofiles", body)

    def edit_profile(self, name: str, **spec: object) -> None:
        where = ("finetune.dev", "v1alpha1", "finetuneprofiles", name)
        self.custom.patch_cluster_custom_object(*where, {"spec": spec})

    def submit(self, name: str, run_policy: dict[str, Any] | None = None, **spec: object) -> Watched:
        """Creates a FineTuneJob and follows it."""
        body = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": name},
            "spec": {
                "profileName": self.name,
                "baseModel": {"uri": "builtin://tiny-shapes"},
                "method": {"lora": {"prompt": "a photo of sks dog"}},
                "dataset": {"uri": "s3://pictures/dog/"},
                "output": {"uri": "s3://models/dog/", "secretRef": {"name": "models"}},
                **({"operatorClass": self.operator_class} if self.operator_class else {}),
                **({"runPolicy": run_policy} if run_policy is not None else {}),
                **spec,
            },
        }
        self.custom.create_namespaced_custom_object("finetune.dev", "v1alpha1", self.name, "finetunejobs", body)
        return Watched(self.api, self.name, name)

    def edit(self, name: str, suspend: bool | None = None, **run_policy: object) -> None:
        where = ("finetune.dev", "v1alpha1", self.name, "finetunejobs", name)
        spec = {} if suspend is None else {"suspend": suspend}
        self.custom.patch_namespaced_custom_object(*where, {"spec": {**spec, "runPolicy": run_policy}})

    def delete(self, name: str) -> None:
        self.custom.delete_namespaced_custom_object("finetune.dev", "v1alpha1", self.name, "finetunejobs", name)

    def job(self, name: str, seconds: float = 30) -> client.V1Job:
        """The child Job, once it is there."""
        return eventually(lambda: self.batch.read_namespaced_job(name, self.name), seconds=seconds, on=ApiException)

    def pods(self, name: str) -> list[client.V1Pod]:
        return self.core.list_namespaced_pod(self.name, label_selector=f"finetune.dev/job={name}").items

    def pod(self, name: str, other_than: str = "", seconds: float = 60) -> client.V1Pod:
        """The pod that has not ended, once it is there."""

        def ask() -> client.V1Pod:
            live = [p for p in self.pods(name) if p.status.phase in ("Pending", "Running")]
            live = [p for p in live if p.metadata.uid != other_than and not p.metadata.deletion_timestamp]
            assert live, f"no pod of {name}: {[p.status.phase for p in self.pods(name)]}"
            return live[0]

        return eventually(ask, seconds=seconds)

    def play_kubelet(self, pod: client.V1Pod, phase: str, state: dict[str, Any], ip: str = "") -> None:
        """Writes the pod's status as a kubelet would."""
        container = {
            "name": "trainer",
            "image": "none",
            "imageID": "",
            "ready": False,
            "restartCount": 0,
            "state": state,
        }
        status: dict[str, Any] = {"phase": phase, "containerStatuses": [container]}
        if ip:
            status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
        self.core.patch_namespaced_pod_status(pod.metadata.name, self.name, {"status": status})

    def runs(self, pod: client.V1Pod, ip: str = "") -> None:
        self.play_kubelet(pod, "Running", {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, ip)

    def ends(self, pod: client.V1Pod, code: int, *, at: datetime | None = None, **result: object) -> None:
        """The container ends, long ago if not `at` a given time, with a termination message if a result is given."""
        job_uid = pod.metadata.labels["finetune.dev/job-uid"]
        message = json.dumps({"runUid": job_uid, **result}) if result else ""
        ended = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}
        end = show(at) if at is not None else "2026-01-01T00:01:00Z"
        times = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": end}
        self.play_kubelet(pod, "Failed" if code else "Succeeded", {"terminated": {**ended, **times}})

    def events(self, name: str) -> list[client.CoreV1Event]:
        selector = f"involvedObject.kind=FineTuneJob,involvedObject.name={name}"
        return self.core.list_namespaced_event(self.name, field_selector=selector).items


@contextmanager
def placed(kubeconfig: Path, name: str, operator_class: str = "") -> Iterator[Place]:
    """A namespace and a profile, taken away again."""
    found = Place(kubeconfig, name, operator_class=operator_class)
    found.make()
    yield found
    found.clear()
