"""Generates the ValidatingAdmissionPolicy that holds jobs to their profile: `python -m finetune_api.admission` (or
`make generate`).

The API server evaluates it with every FineTuneProfile as `params`; a match condition picks the one that the job uses.
The limits themselves are those of limits.py.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from finetune_api.base import API_VERSION, GROUP, VERSION
from finetune_api.crd import Schema, to_yaml
from finetune_api.limit import Limit
from finetune_api.limits import LIMITS

TARGET = "charts/finetune-operator/templates/admission.yaml"
NAME = "finetune-profile-limits"
USES = (
    # What an accepted job uses is settled, whatever becomes the default later.
    "oldObject != null && has(oldObject.status) && has(oldObject.status.resolved)"
    " ? oldObject.status.resolved.?profile.orValue('') == params.metadata.name"
    " : has(object.spec.profileName) ? object.spec.profileName == params.metadata.name"
    " : params.spec.?isDefault.orValue(false) == true"
)
VARIABLES = {name: cel for limit in LIMITS for name, cel in limit.variables.items()}
VARIABLE = re.compile(r"\bvariables\.(\w+)")


def policy(name: str = NAME) -> Schema:
    """The policy: which writes are judged, by which profile, and how."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "paramKind": {"apiVersion": API_VERSION, "kind": "FineTuneProfile"},
            "matchConstraints": {
                "resourceRules": [
                    {
                        "apiGroups": [GROUP],
                        "apiVersions": [VERSION],
                        "operations": ["CREATE", "UPDATE"],
                        "resources": ["finetunejobs"],
                    }
                ]
            },
            "matchConditions": [{"name": "is-the-profile-of-the-job", "expression": USES}],
            "variables": [{"name": name, "expression": cel} for name, cel in VARIABLES.items()],
            "validations": [_validation(limit) for limit in LIMITS],
        },
    }


def _validation(limit: Limit) -> Schema:
    return {
        "expression": limit.cel,
        # Said when the expression of the message fails or gets too long.
        "message": f"{limit.field} does not fit the job's FineTuneProfile",
        "messageExpression": _spelled_out(limit.message_cel),
    }


def _spelled_out(expression: str) -> str:
    """`expression` with the variables' own expressions in their place: a messageExpression that uses variables passes
    the type check but fails when it is evaluated (tried with Kubernetes 1.34), and nobody gets to read it."""
    while (shorter := VARIABLE.sub(lambda found: f"({VARIABLES[found[1]]})", expression)) != expression:
        expression = shorter
    return expression


def binding(name: str = NAME) -> Schema:
    """Puts the policy in force with all profiles. Without any there is nothing to hold a job to."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {
            "policyName": name,
            "paramRef": {"selector": {}, "parameterNotFoundAction": "Allow"},
            "validationActions": ["Deny"],
        },
    }


def rendered() -> dict[str, str]:
    """Path below the repository → content: the chart's template."""
    name = '{{ include "finetune-operator.clusterName" . }}-limits'
    documents = [to_yaml(policy("NAME")), to_yaml(binding("NAME"))]
    assert not any("{{" in document for document in documents), "Helm would read it as a template"
    first, second = (document.replace("name: NAME\n", f"name: {name}\n{LABELS}", 1) for document in documents)
    second = second.replace("policyName: NAME\n", f"policyName: {name}\n{NAMESPACE}")
    body = f"{{{{- if .Values.admissionPolicy.enabled }}}}\n{first}---\n{second}{{{{- end }}}}\n"
    return {TARGET: "# Generated from api/finetune_api by `make generate`. Do not edit.\n" + body}


LABELS = """\
  labels:
    {{- include "finetune-operator.labels" . | nindent 4 }}
"""
NAMESPACE = """\
  {{- with .Values.watchNamespace }}
  matchResources:
    namespaceSelector:
      matchLabels: {kubernetes.io/metadata.name: {{ . }}}
  {{- end }}
"""


def main() -> None:
    """Writes the template below the folder named, or the current one."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for path, content in rendered().items():
        (root / path).write_text(content)


if __name__ == "__main__":
    main()
