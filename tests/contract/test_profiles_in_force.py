"""Profiles from end to end: the chart's policy comes and goes with the release, and what a job got from its profile
stays with it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_specs import GOOD
from finetune_api import FineTuneJobSpec, FineTuneProfileSpec
from finetune_api.base import Model, RulesBroken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from pydantic import ValidationError
from support.hostile import ADMIN, SCHEMAS, USER, specs, values
from support.need import missing
from support.operating import Place
from support.waiting import eventually
from test_operator_lifecycle import RESULT, conditions, has, phase

CHART = Path(__file__).parents[2] / "charts/finetune-operator"
GROUP = ("finetune.dev", "v1alpha1")


def refusal(ask: Callable[[], object]) -> str | None:
    try:
        ask()
    except ApiException as refused:
        return str(yaml.safe_load(refused.body)["message"])
    return None


@pytest.fixture
def custom(api_server: Path) -> client.CustomObjectsApi:
    return client.CustomObjectsApi(config.new_client_from_config(str(api_server)))


# --- the chart


@pytest.fixture
def release(api_server: Path) -> Iterator[Callable[..., None]]:
    """Runs helm on a release without pods, and removes it if the test does not."""
    if shutil.which("helm") is None:
        missing("helm is not on the PATH")

    def helm(*arguments: str) -> None:
        environment = os.environ | {"KUBECONFIG": str(api_server)}
        where = ("--namespace", "default", "--timeout", "60s")
        done = subprocess.run(
            ["helm", *arguments, *where], env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr

    yield helm
    helm("uninstall", "limits-come-and-go", "--ignore-not-found")


def test_the_policy_comes_and_goes_with_the_release(
    release: Callable[..., None], custom: client.CustomObjectsApi
) -> None:
    profile = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": "of-the-release"},
        "spec": {"limits": {"maxSteps": 10}},
    }
    job = {**GOOD, "spec": {**GOOD["spec"], "profileName": "of-the-release", "training": {"steps": 11}}}
    custom.create_cluster_custom_object(*GROUP, "finetuneprofiles", profile)

    def said() -> str | None:
        return refusal(
            lambda: custom.create_namespaced_custom_object(*GROUP, "default", "finetunejobs", job, dry_run="All")
        )

    def refused() -> None:
        words = "spec.training.steps is 11, FineTuneProfile of-the-release allows at most 10"
        assert words in (said() or "")

    def taken() -> None:
        assert said() is None

    try:
        eventually(taken, seconds=15)  # the policy of an earlier test may not be forgotten yet
        values = "crds.install=false,profiles.cpuTiny.enabled=false,replicas=0"
        release("install", "limits-come-and-go", str(CHART), "--set", values)
        eventually(refused, seconds=30)
        release("uninstall", "limits-come-and-go")
        eventually(taken, seconds=30)
    finally:
        custom.delete_cluster_custom_object(*GROUP, "finetuneprofiles", "of-the-release")


# --- the models and the CRDs are one judge: what pydantic refuses nobody can apply, and nothing else

DRAWN = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
STRICT = {"dry_run": "All", "field_validation": "Strict"}


def broken_rules(spec: dict[str, Any], model: type[Model]) -> set[str]:
    """Messages of the rules that the model finds broken. Values out of bounds are not drawn."""
    try:
        model.model_validate(spec)
    except ValidationError as error:
        # a list is counted without the items that broke a rule
        problems = [problem for problem in error.errors() if problem["type"] != "too_short"]
        assert {type(p["ctx"]["error"]) for p in problems} == {RulesBroken}, problems
        return {rule.message for p in problems for rule in p["ctx"]["error"].rules}
    return set()


@DRAWN
@given(st.one_of(values(SCHEMAS[USER], USER), specs(USER)))
def test_the_api_server_refuses_the_jobs_that_the_models_refuse(
    custom: client.CustomObjectsApi, spec: dict[str, Any]
) -> None:
    body = {**GOOD, "spec": {**spec, "profileName": "unheard-of"}}
    said = refusal(lambda: custom.create_namespaced_custom_object(*GROUP, "default", "finetunejobs", body, **STRICT))
    expected = broken_rules(spec, FineTuneJobSpec)
    assert (said is None) is not bool(expected), said
    assert [message for message in expected if message not in (said or "")] == []


@DRAWN
@given(st.one_of(values(SCHEMAS[ADMIN], ADMIN), specs(ADMIN)))
def test_the_api_server_refuses_the_profiles_that_the_models_refuse(
    custom: client.CustomObjectsApi, spec: dict[str, Any]
) -> None:
    body = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneProfile", "metadata": {"name": "p"}, "spec": spec}
    said = refusal(lambda: custom.create_cluster_custom_object(*GROUP, "finetuneprofiles", body, **STRICT))
    expected = broken_rules(spec, FineTuneProfileSpec)
    assert (said is None) is not bool(expected), said
    assert [message for message in expected if message not in (said or "")] == []


# --- snapshots


def test_an_accepted_job_keeps_its_profile_as_it_was(place: Place) -> None:
    """Edited, suspended, resumed: the second Job is made of the first one's snapshot."""
    watched = place.submit("dog")
    before = watched.until(has("Accepted", "True", "Accepted"), seconds=15, what="acceptance")["status"]["resolved"]
    place.pod("dog")
    place.edit_profile(
        place.name, image="other.invalid/none:2", limits={"maxSteps": 1}, defaults={"training": {"steps": 1}}
    )
    place.edit("dog", suspend=True)
    watched.until(phase("Suspended"), seconds=30, what="suspension")
    place.edit("dog", suspend=False)
    pod = place.pod("dog")
    assert pod.spec.containers[0].image == "trainer.invalid/none:1"
    place.ends(pod, 0, **RESULT)
    found = watched.until(phase("Succeeded"), seconds=30, what="success")
    assert found["status"]["resolved"] == before
    assert conditions(found)["Accepted"]["status"] == "True"


def test_a_profile_may_go_while_its_jobs_run(place: Place) -> None:
    watched = place.submit("dog")
    place.pod("dog")
    place.custom.delete_cluster_custom_object(*GROUP, "finetuneprofiles", place.name)
    late = place.submit("cat")
    late.until(has("Accepted", "False", "ProfileNotFound"), seconds=15, what="ProfileNotFound")
    place.edit("dog", suspend=True)
    watched.until(phase("Suspended"), seconds=30, what="suspension")
    place.edit("dog", suspend=False)
    place.ends(place.pod("dog"), 0, **RESULT)
    watched.until(phase("Succeeded"), seconds=30, what="success")
    place.make_profile(place.name)
    late.until(has("Accepted", "True", "Accepted"), seconds=15, what="acceptance")


def test_the_image_of_a_job_is_used_if_its_profile_allows_it(place: Place) -> None:
    image = "mine.invalid/none:1"
    watched = place.submit("dog", image=image)
    found = watched.until(has("Accepted", "False", "InvalidSpec"), seconds=15, what="InvalidSpec")
    words = f"spec.image is {image}, FineTuneProfile {place.name} allows none (limits.allowedImages)"
    assert words in conditions(found)["Accepted"]["message"]
    place.edit_profile(place.name, limits={"allowedImages": [image]})
    found = watched.until(has("Accepted", "True", "Accepted"), seconds=15, what="acceptance")
    assert found["status"]["resolved"]["image"] == image
    assert place.pod("dog").spec.containers[0].image == image


def test_jobs_that_name_no_profile_get_the_default_one(place: Place) -> None:
    second = f"{place.name}-b"
    place.edit_profile(place.name, isDefault=True)
    place.make_profile(second, isDefault=True)
    try:
        watched = place.submit("dog", profileName=None)
        found = watched.until(has("Accepted", "False", "AmbiguousProfile"), seconds=15, what="AmbiguousProfile")
        assert f"({place.name}, {second})" in conditions(found)["Accepted"]["message"]
        place.edit_profile(second, isDefault=False)
        found = watched.until(has("Accepted", "True", "Accepted"), seconds=15, what="acceptance")
        assert found["status"]["resolved"]["profile"] == place.name
    finally:
        place.edit_profile(place.name, isDefault=False)
        place.custom.delete_cluster_custom_object(*GROUP, "finetuneprofiles", second)
