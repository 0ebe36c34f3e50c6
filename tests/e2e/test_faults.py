"""What goes wrong for users, and what they are told: the field, the remedy, and no endless retries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from jobs import Job, condition, example, has
from support.cluster import Cluster, Namespace, manifest


def nothing(namespace: Namespace, job: Job) -> None:
    """The fault is in the spec alone."""


def wrong_keys(namespace: Namespace, job: Job) -> None:
    values = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "guessed-in-vain"}
    namespace.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong"}, "stringData": values})
    job["spec"]["output"]["secretRef"] = {"name": "wrong"}


def no_secret(namespace: Namespace, job: Job) -> None:
    job["spec"]["dataset"]["secretRef"] = {"name": "not-there"}


def missing_bucket(namespace: Namespace, job: Job) -> None:
    job["spec"]["output"]["uri"] = "s3://no-such-bucket/figure/"


def no_pictures(namespace: Namespace, job: Job) -> None:
    job["spec"]["dataset"]["uri"] = "s3://pictures/nothing-here/"


def corrupt_picture(namespace: Namespace, job: Job) -> None:
    prefix = f"{namespace.name}/corrupt/"
    (picture, *_) = sorted((Path(__file__).parents[2] / "examples/subjects/figure").glob("*.png"))
    whole = picture.read_bytes()
    s3 = namespace.cluster.s3
    s3.put_object(Bucket="pictures", Key=f"{prefix}good.png", Body=whole)
    s3.put_object(Bucket="pictures", Key=f"{prefix}torn.png", Body=whole[: len(whole) // 2])
    job["spec"]["dataset"]["uri"] = f"s3://pictures/{prefix}"


def unknown_profile(namespace: Namespace, job: Job) -> None:
    job["spec"]["profileName"] = "no-such-profile"


def quota(namespace: Namespace, job: Job) -> None:
    hard = {"limits.memory": "1Mi"}
    namespace.apply(
        {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": {"hard": hard}}
    )


@dataclass(frozen=True)
class Fault:
    name: str
    make: Callable[[Namespace, Job], None]
    condition: tuple[str, str, str]  # type, status, reason
    says: tuple[str, ...]
    pods: int

    def __str__(self) -> str:
        return self.name


FAULTS = [
    Fault("wrong keys", wrong_keys, ("Failed", "True", "BadConfiguration"), ("spec.output.secretRef", "wrong"), 1),
    Fault("no secret", no_secret, ("Failed", "True", "BadConfiguration"), ("spec.dataset.secretRef", "not-there"), 1),
    Fault(
        "missing bucket", missing_bucket, ("Failed", "True", "BadConfiguration"), ("spec.output", "no-such-bucket"), 1
    ),
    Fault("no pictures", no_pictures, ("Failed", "True", "BadData"), ("spec.dataset.uri", "nothing-here"), 1),
    Fault("corrupt picture", corrupt_picture, ("Failed", "True", "BadData"), ("torn.png",), 1),
    Fault("unknown profile", unknown_profile, ("Accepted", "False", "ProfileNotFound"), ("spec.profileName",), 0),
    Fault("quota", quota, ("PodsReady", "False", "QuotaExceeded"), ("exceeded quota: small",), 0),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_is_named_with_field_and_remedy(fault: Fault, namespace: Namespace) -> None:
    job = example("finetunejob.yaml", namespace)
    fault.make(namespace, job)
    namespace.apply(job)
    kind, status, reason = fault.condition
    found = namespace.job("figure").until(has(kind, status, reason), seconds=120, what=f"{kind}={status} {reason}")
    message = condition(found, kind)["message"]
    print(message)
    for words in fault.says:
        assert words in message
    secret_values = [*namespace.cluster.s3_keys.values(), "guessed-in-vain"]
    story = namespace.kubectl("get", "finetunejobs,events", "--output", "yaml")
    assert not [value for value in secret_values if value in story]
    assert len(namespace.pods("figure")) == fault.pods, "the fault is the user's: nothing is tried again"


def test_image_that_cannot_be_pulled(cluster: Cluster, namespace: Namespace) -> None:
    """It is said which image and why; the job fails at its start deadline, not never."""
    image = "registry.invalid/finetune-trainer:none"
    profile = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": namespace.name},
        "spec": {"image": image},
    }
    cluster.kubectl("apply", "--filename", "-", stdin=manifest(profile))
    try:
        job = example("finetunejob.yaml", namespace, profileName=namespace.name, runPolicy={"startDeadlineSeconds": 45})
        namespace.apply(job)
        watched = namespace.job("figure")
        waiting = watched.until(has("PodsReady", "False", "ImagePullFailed"), seconds=60, what="ImagePullFailed")
        assert image in condition(waiting, "PodsReady")["message"]
        failed = watched.until(has("Failed", "True", "StartDeadlineExceeded"), seconds=120, what="the deadline")
        assert failed["status"]["phase"] == "Failed"
    finally:
        cluster.kubectl("delete", "finetuneprofile", namespace.name)
