"""The API server holds jobs to their profile at `kubectl apply`: the same judgement and the same words as Python's.

The policy is the one that the chart installs; tests/unit/test_admission_policy.py compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
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

    def known(self, name: str) -> None:
        """Waits until the policy judges by this profile, and so by all that were written before it: the API server
        watches them, and learns of each a moment later. The profile must name no image that a job may use."""
        asks = Misfit({"image": "no:1"}, {}, "").job(name)

        def judged() -> None:
            assert "limits.allowedImages" in (self.refusal(lambda: self.create(asks)) or "")

        eventually(judged, seconds=30)

    def make_profile(self, name: str, **spec: object) -> None:
        self.custom.create_cluster_custom_object(body=profile_document(name, spec), **PROFILES)

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
