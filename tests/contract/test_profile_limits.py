"""The API server holds jobs to their profile at `kubectl apply`: the same judgement and the same words as Python's.

The policy is the one that the chart installs; tests/unit/test_admission_policy.py compares the two.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_specs import GOOD
from finetune_api import Asked
from finetune_api.admission import binding, policy
from finetune_api.limits import refusals
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from misfits import FITS, MISFITS, NAMESPACE, PROFILE, Misfit, profile_document
from support.waiting import eventually

NAME = "limits-under-test"
JOBS = {"group": "finetune.dev", "version": "v1alpha1", "plural": "finetunejobs", "namespace": NAMESPACE}
PROFILES = {"group": "finetune.dev", "version": "v1alpha1", "plural": "finetuneprofiles"}


class Server:
    """The API server with the policy in force."""

    def __init__(self, kubeconfig: Path) -> None:
        self.api = config.new_client_from_config(str(kubeconfig))
        self.custom = client.CustomObjectsApi(self.api)
        self.admission = client.AdmissionregistrationV1Api(self.api)

    def create(self, job: dict[str, Any], dry_run: bool = True) -> dict[str, Any]:
        how = {"dry_run": "All"} if dry_run else {}
        return self.custom.create_namespaced_custom_object(body=job, field_validation="Strict", **JOBS, **how)

    def refusal(self, ask: Callable[[], object]) -> str | None:
        """What the policy first finds wrong with a write; None when the API server takes it."""
        try:
            ask()
        except ApiException as refused:
            status = yaml.safe_load(refused.body)
            assert (status["reason"], status["code"]) == ("Invalid", 422), status
            (cause,) = status["details"]["causes"]
            prefix = f"ValidatingAdmissionPolicy '{NAME}' with binding '{NAME}' denied request: "
            assert cause["message"].startswith(prefix), "it is the policy that refuses"
            return str(cause["message"].removeprefix(prefix))
        return None

    def judges_by(self, name: str) -> bool:
        """Whether the policy knows this profile, which allows no image called no:1."""
        body = Misfit({"image": "no:1"}, {}, "").job(name)
        return f"FineTuneProfile {name} " in (self.refusal(lambda: self.create(body)) or "")

    def known(self, name: str) -> None:
        """Waits until the policy judges by this profile, and so by all that were written before it: the API server
        watches them, and learns of each a moment later."""

        def judged() -> None:
            assert self.judges_by(name)

        eventually(judged, seconds=30)

    def forgotten(self, name: str) -> None:
        """Waits until the policy no longer judges by this profile, nor by any deleted before it."""

        def passed() -> None:
            assert not self.judges_by(name)

        eventually(passed, seconds=30)

    def make_profile(self, name: str, **spec: object) -> None:
        self.custom.create_cluster_custom_object(body=profile_document(name, spec), **PROFILES)

    def edit_profile(self, name: str, **spec: object) -> None:
        self.custom.patch_cluster_custom_object(name=name, body={"spec": spec}, **PROFILES)

    def drop_profile(self, name: str) -> None:
        self.custom.delete_cluster_custom_object(name=name, **PROFILES)


@pytest.fixture(scope="module")
def server(api_server: Path) -> Iterator[Server]:
    found = Server(api_server)
    found.admission.create_validating_admission_policy(policy(NAME))
    found.admission.create_validating_admission_policy_binding(binding(NAME))
    yield found
    found.admission.delete_validating_admission_policy_binding(NAME)
    found.admission.delete_validating_admission_policy(NAME)


@pytest.fixture(scope="module")
def names(server: Server) -> Iterator[dict[str, str]]:
    """Words of each row of the tables → name of its profile."""
    rows = {row.says: f"row-{i}" for i, row in enumerate((*MISFITS, *FITS))}
    for row in (*MISFITS, *FITS):
        server.make_profile(rows[row.says], **row.profile)
    server.make_profile("last-row")
    server.known("last-row")
    yield rows
    for name in (*rows.values(), "last-row"):
        server.drop_profile(name)


@pytest.mark.parametrize("misfit", MISFITS, ids=lambda m: m.id)
def test_a_misfit_is_refused_in_the_words_of_python(server: Server, names: dict[str, str], misfit: Misfit) -> None:
    name = names[misfit.says]
    job = misfit.job(name)
    first, *_ = refusals(Asked(job["spec"], misfit.profile, name, NAMESPACE))
    assert server.refusal(lambda: server.create(job)) == first
    assert misfit.says in first.replace(name, PROFILE)


@pytest.mark.parametrize("fit", FITS, ids=lambda m: m.id)
def test_what_fits_is_taken(server: Server, names: dict[str, str], fit: Misfit) -> None:
    assert server.refusal(lambda: server.create(fit.job(names[fit.says]))) is None


# --- which profile


@pytest.fixture
def profile(server: Server) -> Iterator[Callable[..., str]]:
    """Makes profiles that the policy judges by, for one test."""
    made: list[str] = []

    def make(**spec: object) -> str:
        name = f"of-test-{secrets.token_hex(3)}"
        server.make_profile(name, **spec)
        made.append(name)
        server.known(name)
        return name

    yield make
    for name in made:
        server.drop_profile(name)
    server.forgotten(made[-1])


def job(profile_name: str | None = None, **spec: object) -> dict[str, Any]:
    named = {} if profile_name is None else {"profileName": profile_name}
    return {**GOOD, "metadata": {"name": "judged", "namespace": NAMESPACE}, "spec": {**GOOD["spec"], **named, **spec}}


def steps(number: int) -> dict[str, Any]:
    return {"training": {"steps": number}}


def test_the_default_profile_holds_for_jobs_that_name_none(server: Server, profile: Callable[..., str]) -> None:
    assert server.refusal(lambda: server.create(job(**steps(20)))) is None, "there is no default profile yet"
    default = profile(isDefault=True, limits={"maxSteps": 10})
    said = server.refusal(lambda: server.create(job(**steps(20))))
    assert (
        said
        == f"spec.training.steps is 20, FineTuneProfile {default} allows at most 10 (limits.maxSteps); use 10 or less"
    )
    assert server.refusal(lambda: server.create(job(**steps(10)))) is None


def test_another_profile_is_none_of_the_jobs_business(server: Server, profile: Callable[..., str]) -> None:
    wide = profile(limits={"maxSteps": 100})
    profile(isDefault=True, limits={"maxSteps": 10})
    assert server.refusal(lambda: server.create(job(wide, **steps(100)))) is None


def test_an_unknown_profile_is_no_refusal(server: Server, profile: Callable[..., str]) -> None:
    """It may come: the operator says so in a condition."""
    profile(limits={"maxSteps": 10})
    assert server.refusal(lambda: server.create(job("to-come", **steps(100)))) is None


# --- what changes later


@pytest.fixture
def judged(server: Server) -> Iterator[Callable[..., Callable[..., str | None]]]:
    """Creates a job; what it returns changes the job and gives the refusal."""

    created: list[str] = []

    def create(body: dict[str, Any], **status: object) -> Callable[..., str | None]:
        server.create(body, dry_run=False)
        created.append(body["metadata"]["name"])
        if status:
            server.custom.patch_namespaced_custom_object_status(name="judged", body={"status": status}, **JOBS)
        return lambda **spec: server.refusal(
            lambda: server.custom.patch_namespaced_custom_object(name="judged", body={"spec": spec}, **JOBS)
        )

    yield create
    for name in created:
        server.custom.delete_namespaced_custom_object(name=name, **JOBS)


def test_a_profile_that_gets_stricter_binds_no_job_that_is_there(
    server: Server, profile: Callable[..., str], judged: Callable[..., Callable[..., str | None]]
) -> None:
    name = profile(limits={"maxActiveDeadlineSeconds": 3600})
    change = judged(job(name, runPolicy={"activeDeadlineSeconds": 3600}, **steps(100)))
    server.edit_profile(name, limits={"maxActiveDeadlineSeconds": 60, "maxSteps": 1})

    def in_force() -> None:
        said = server.refusal(lambda: server.create(job(name, **steps(2))))
        assert "limits.maxSteps" in (said or "")

    eventually(in_force, seconds=30)
    assert change(suspend=True) is None
    assert change(runPolicy={"retries": 9, "ttlSecondsAfterFinished": 5}) is None
    assert change(runPolicy={"activeDeadlineSeconds": 3600}) is None, "it is what it was"
    said = change(runPolicy={"activeDeadlineSeconds": 61})
    assert said is not None, "a change is a new wish"
    assert said.startswith(f"spec.runPolicy.activeDeadlineSeconds is 61, FineTuneProfile {name} allows at most 60")
    assert change(runPolicy={"activeDeadlineSeconds": 60}) is None
    assert change(runPolicy={"activeDeadlineSeconds": None}) is None


def test_an_accepted_job_stays_with_the_default_profile_that_it_got(
    server: Server, profile: Callable[..., str], judged: Callable[..., Callable[..., str | None]]
) -> None:
    first = profile(limits={"maxActiveDeadlineSeconds": 3600})
    change = judged(job(), resolved={"profile": first, "image": "trainer:1"})
    profile(isDefault=True, limits={"maxActiveDeadlineSeconds": 60})
    assert change(runPolicy={"activeDeadlineSeconds": 3600}) is None
    assert f"FineTuneProfile {first}" in (change(runPolicy={"activeDeadlineSeconds": 3601}) or "")


# --- the policy itself


def test_the_api_server_finds_no_fault_with_the_types(server: Server) -> None:
    def checked() -> None:
        found = server.admission.read_validating_admission_policy(NAME)
        assert found.status is not None
        assert found.status.observed_generation == found.metadata.generation
        assert not found.status.type_checking.expression_warnings

    eventually(checked, seconds=30, on=Exception)


def test_the_largest_profile_and_the_largest_job_are_judged(server: Server, profile: Callable[..., str]) -> None:
    """An expression that costs too much is refused like a misfit, and nobody could use the profile."""

    def names(count: int, length: int = 253) -> list[str]:
        return [f"{i:04}".rjust(length, "a") for i in range(count)]

    endpoints = [f"https://{name}" for name in names(64, 500)]
    images, secret_names, accounts = names(64, 512), names(64), names(64)
    limits = {
        "maxSteps": 1_000_000,
        "maxNodes": 64,
        "maxActiveDeadlineSeconds": 31_536_000,
        "allowedNamespaces": [*names(255), NAMESPACE],
        "allowedImages": images,
        "allowedServiceAccounts": accounts,
        "allowedEndpoints": endpoints,
        "allowedSecretNames": secret_names,
    }
    name = profile(limits=limits)
    access = {"storage": {"endpoint": endpoints[-1]}, "secretRef": {"name": secret_names[-1]}}
    sections = {section: {**GOOD["spec"][section], **access} for section in ("baseModel", "dataset", "output")}
    asks = {"image": images[-1], "serviceAccountName": accounts[-1], **sections, **steps(1_000_000)}
    assert server.refusal(lambda: server.create(job(name, **asks))) is None
    said = server.refusal(lambda: server.create(job(name, **{**asks, "image": "x" * 512})))
    assert said is not None
    assert said.startswith(f"spec.image is {'x' * 512}, FineTuneProfile {name} allows only aaaa")


# --- both judges


def drawn(draw: random.Random, **choices: tuple[object, ...]) -> dict[str, Any]:
    """Some of the fields, each with one of its values."""
    return {name: draw.choice(values) for name, values in choices.items() if draw.random() < 0.5}


def random_profile(draw: random.Random) -> dict[str, Any]:
    limits = drawn(
        draw,
        maxSteps=(400, 500, 900),
        maxNodes=(1, 2),
        maxActiveDeadlineSeconds=(60, 600),
        allowedNamespaces=(["other"], ["other", NAMESPACE], [NAMESPACE]),
        allowedServiceAccounts=(["a"], ["b", "c"]),
        allowedEndpoints=(["http://a"], ["http://b", "http://c"]),
        allowedSecretNames=(["a"], ["b", "c"]),
    )
    length = draw.choice(({}, {"steps": draw.choice((300, 400))}, {} if "maxSteps" in limits else {"epochs": 3}))
    training = {**length, **({"scheduler": {"warmupSteps": 299}} if draw.random() < 0.3 else {})}
    defaults: dict[str, Any] = {"training": training} if training else {}
    if draw.random() < 0.4:
        defaults["storage"] = {"endpoint": "http://a"}
    limits["allowedImages"] = ["a:1", "b:1"]
    return {"limits": limits, "defaults": defaults}


def random_job(draw: random.Random) -> dict[str, Any]:
    spec = drawn(draw, image=("a:1", "b:2"), serviceAccountName=("a", "c"), engine=({"nodes": 1}, {"nodes": 2}))
    spec["method"] = draw.choice(({"lora": {"prompt": "x"}}, {"dreamBooth": {"prompt": "x"}}))
    length = draw.choice(({}, {"steps": draw.choice((200, 450, 900))}, {"epochs": 3}))
    warmup = draw.choice(({}, {}, {"scheduler": {"warmupSteps": draw.choice((0, 199, 400, 500))}}))
    if not ("steps" in length and warmup and warmup["scheduler"]["warmupSteps"] >= length["steps"]):
        spec["training"] = {**length, **warmup}
    for section in ("baseModel", "dataset", "output"):
        endpoint = drawn(draw, endpoint=("http://a", "http://b"), region=("eu-1",))
        storage = {"storage": endpoint} if endpoint else {}
        secret = {"secretRef": {"name": draw.choice("ab")}} if draw.random() < 0.3 else {}
        spec[section] = {**GOOD["spec"][section], **storage, **secret}
    if draw.random() < 0.5:
        spec["runPolicy"] = {"activeDeadlineSeconds": draw.choice((60, 61))}
    return spec


def test_both_judges_agree_on_whatever_is_asked(server: Server, profile: Callable[..., str]) -> None:
    draw = random.Random(20260101)
    profiles = {}
    for _ in range(12):
        spec = random_profile(draw)
        profiles[profile(**spec)] = spec
    verdicts = []
    for _ in range(400):
        name, spec = draw.choice(list(profiles.items()))
        body = job(name, **random_job(draw))
        found = refusals(Asked(body["spec"], spec, name, NAMESPACE))
        said = server.refusal(lambda body=body: server.create(body))
        assert said == (found[0] if found else None), (body["spec"], spec)
        verdicts.append(said)
    assert 20 < verdicts.count(None) < 380, "both verdicts were heard"
