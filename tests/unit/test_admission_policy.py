"""The chart's ValidatingAdmissionPolicy: what api/finetune_api/admission.py says, as long as the release is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from finetune_api.admission import binding, policy, rendered
from finetune_api.limits import LIMITS
from test_chart import of_kind, render

ROOT = Path(__file__).parents[2]
POLICY, BINDING = "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"
NAME = "finetune-operator-finetune-system-limits"


def without_labels(manifest: dict[str, Any]) -> dict[str, Any]:
    return {**manifest, "metadata": {key: value for key, value in manifest["metadata"].items() if key != "labels"}}


@pytest.mark.parametrize("path", sorted(rendered()))
def test_committed_file_is_up_to_date(path: str) -> None:
    assert (ROOT / path).read_text() == rendered()[path], "stale: run `make generate`"


def test_helm_renders_what_was_generated() -> None:
    manifests = render()
    (found,), (bound,) = of_kind(manifests, POLICY), of_kind(manifests, BINDING)
    assert without_labels(found) == policy(NAME)
    assert without_labels(bound) == binding(NAME)
    assert found["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"


def test_it_goes_with_the_release() -> None:
    """A policy that stayed would refuse jobs that nobody serves any more: no `keep`, and no hook that Helm forgets."""
    manifests = render()
    for manifest in (*of_kind(manifests, POLICY), *of_kind(manifests, BINDING)):
        assert "annotations" not in manifest["metadata"]


def test_it_can_be_left_out() -> None:
    manifests = render("--set", "admissionPolicy.enabled=false")
    assert not of_kind(manifests, POLICY) + of_kind(manifests, BINDING)


def test_an_operator_of_one_namespace_judges_that_one_only() -> None:
    (bound,) = of_kind(render("--set", "watchNamespace=team-a"), BINDING)
    selector = {"matchLabels": {"kubernetes.io/metadata.name": "team-a"}}
    assert bound["spec"]["matchResources"] == {"namespaceSelector": selector}


def test_messages_use_no_variables() -> None:
    """Kubernetes 1.34 takes them and then fails to evaluate them."""
    validations: Any = policy()["spec"]
    messages = [validation["messageExpression"] for validation in validations["validations"]]
    assert len(messages) == len(LIMITS)
    assert not [message for message in messages if re.search(r"\bvariables\.", message)]
