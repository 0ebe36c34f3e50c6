"""Users cannot leave the pod that their profile describes, by any field: whatever a job says, the pod keeps to the
restricted Pod Security Standard, and the job's own words reach it in a few named places only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from finetune_api import RunIdentity
from finetune_operator.policies.acceptance import Refused, accept
from finetune_operator.projections import ProfileState
from finetune_operator.specs.configmap import Snapshot
from finetune_operator.specs.job import Queue, training_job
from hypothesis import HealthCheck, assume, example, given, settings
from support.hostile import ADMIN, USER, specs

IDENTITY = RunIdentity(name="dog", namespace="art", uid="11111111-2222-3333-4444-555555555555")
OPERATOR_IMAGE = "trainer:1"
DRAWN = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

# --- what the restricted standard asks for: https://kubernetes.io/docs/concepts/security/pod-security-standards/

VOLUME_KINDS = {"configMap", "emptyDir", "secret", "persistentVolumeClaim"}
"""The standard allows a few more, which no training pod needs."""


def beyond_restricted(pod: dict[str, Any]) -> Iterator[str]:
    """Every way in which a pod spec breaks the restricted standard."""
    context = pod.get("securityContext", {})
    yield from (key for key in ("hostNetwork", "hostPID", "hostIPC", "hostUsers", "hostAliases") if pod.get(key))
    yield from (f"pod {key}" for key in ("seLinuxOptions", "sysctls", "windowsOptions") if context.get(key))
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") in (None, 0):
        yield "root"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "seccompProfile"
    for volume in pod.get("volumes", []):
        kinds = set(volume) - {"name"}
        if len(kinds) != 1 or not kinds <= VOLUME_KINDS:
            yield f"volume {volume['name']}: {kinds}"
    for container in (*pod.get("initContainers", []), *pod["containers"], *pod.get("ephemeralContainers", [])):
        own = container.get("securityContext", {})
        if own.get("capabilities") != {"drop": ["ALL"]}:
            yield "capabilities"
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield "privileges"
        yield from (f"container {key}" for key in ("procMount", "seLinuxOptions", "runAsUser") if own.get(key))
        if own.get("runAsNonRoot", True) is not True or own.get("seccompProfile") not in (
            None,
            context["seccompProfile"],
        ):
            yield "container overrides"
        yield from ("hostPort" for port in container.get("ports", []) if port.get("hostPort"))


# --- the job that a spec and a profile make


def made(spec: dict[str, Any], profile: dict[str, Any]) -> tuple[Snapshot, dict[str, Any]] | None:
    """The snapshot and the Job; None where the job is not accepted."""
    state = ProfileState("limited", "uid", 1, True, json.dumps(profile).encode())
    spec = {key: value for key, value in spec.items() if key != "profileName"}
    found = accept(spec, {"limited": state}, IDENTITY, OPERATOR_IMAGE)
    if isinstance(found, Refused):
        assert found.reason == "InvalidSpec", found
        return None
    policy = spec.get("runPolicy", {})
    queue = Queue(policy["queueName"], policy.get("priorityClass")) if "queueName" in policy else None
    return found, training_job(found, spec.get("serviceAccountName"), 3, 0, queue)


def permissive(profile: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    """`profile` with limits that let the job in, if only just: what it names is listed."""
    lists = {
        "allowedImages": spec.get("image"),
        "allowedServiceAccounts": spec.get("serviceAccountName"),
    }
    return {**profile, "limits": {key: [f"{ADMIN}-x", value] for key, value in lists.items() if value is not None}}


def strings(value: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a document, keys included, and where it stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{path}.{{key}}", key
            yield from strings(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner, f"{path}[]")
    elif isinstance(value, str):
        yield path, value


POD = ".spec.template.spec"
WHERE_USERS_SPEAK = {
    ".metadata.labels.kueue.x-k8s.io/queue-name",
    ".metadata.labels.kueue.x-k8s.io/priority-class",
    f"{POD}.volumes[].secret.secretName",
    f"{POD}.volumes[].persistentVolumeClaim.claimName",
    f"{POD}.serviceAccountName",  # of limits.allowedServiceAccounts
    f"{POD}.containers[].image",  # of limits.allowedImages
    f"{POD}.containers[].volumeMounts[].mountPath",  # of an empty volume, engine.nvmePath
}
ON_DISK: dict[str, Any] = {
    "baseModel": {"uri": f"hf://{USER}/x"},
    "method": {"dreamBooth": {"prompt": USER}},
    "dataset": {"uri": f"s3://{USER}/"},
    "output": {"uri": f"s3://{USER}/out/"},
    "engine": {"kind": "DeepSpeed", "zeroStage": 3, "offloadOptimizer": "Nvme", "nvmePath": f"/{USER}/disk"},
}
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


@DRAWN
@given(specs(USER), specs(ADMIN))
@example(ON_DISK, {})
def test_no_job_leads_out_of_its_pod(spec: dict[str, Any], profile: dict[str, Any]) -> None:
    result = made(spec, permissive(profile, spec))
    assume(result is not None)
    assert result is not None
    snapshot, job = result
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert list(beyond_restricted(pod)) == []
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["automountServiceAccountToken"] is False
    assert "command" not in container, "the image's own entry point"
    assert "envFrom" not in container
    assert not [entry for entry in container["env"] if not {"value", "valueFrom"} & entry.keys()]
    assert not [e for e in container["env"] if "valueFrom" in e and set(e["valueFrom"]) != {"fieldRef"}]

    spoken = {path for path, text in strings(job) if USER in text.lower()}
    assert spoken <= WHERE_USERS_SPEAK
    for path, text in strings(job):
        if path.endswith(".mountPath"):
            (volume,) = [m["name"] for m in container["volumeMounts"] if m["mountPath"] == text]
            assert USER not in text or volume == "offload"
        elif path in spoken and not path.endswith((".image", "-name", "-class")):
            assert NAME.fullmatch(text), "a name, and nothing that anybody executes"

    assert (pod.get("serviceAccountName") or None) == spec.get("serviceAccountName")
    assert container["image"] == (spec.get("image") or profile.get("image") or OPERATOR_IMAGE)
    assert USER in snapshot.run_json, "the words are there, in run.json alone"


@DRAWN
@given(specs(USER), specs(ADMIN))
def test_where_and_with_what_it_runs_is_the_profiles_choice(spec: dict[str, Any], profile: dict[str, Any]) -> None:
    result = made(spec, permissive(profile, spec))
    assume(result is not None)
    assert result is not None
    pod = result[1]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for field in ("nodeSelector", "runtimeClassName", "priorityClassName"):
        assert pod.get(field) == (profile.get(field) or None)
    assert container["resources"] == profile.get("resources", {})
    assert container["imagePullPolicy"] == profile.get("imagePullPolicy", "IfNotPresent")
    assert [s["name"] for s in pod.get("imagePullSecrets", [])] == list(profile.get("imagePullSecrets", ()))
    assert pod["tolerations"][2:] == list(profile.get("tolerations", ())), "after the two for a lost node"
    for volume in pod["volumes"]:
        writable = volume["name"] == "cache"
        claim = volume.get("persistentVolumeClaim")
        if claim is not None:
            assert claim.get("readOnly", False) is not writable
            mount = next(m for m in container["volumeMounts"] if m["name"] == volume["name"])
            assert mount.get("readOnly", False) is not writable
            assert "subPath" not in mount


@DRAWN
@given(specs(USER), specs(ADMIN))
def test_images_and_accounts_come_from_the_allow_lists_alone(spec: dict[str, Any], profile: dict[str, Any]) -> None:
    """As the profile was drawn: it has never heard of what the user names."""
    if "image" in spec or "serviceAccountName" in spec:
        assert made(spec, profile) is None
