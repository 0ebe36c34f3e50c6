"""Which objects an operator serves: one namespace or all, and the FineTuneJobs of one class.

The API server does the choosing, by selectors, so that an operator neither receives nor remembers another's objects.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from finetune_operator.resources import FINETUNEJOBS, JOBS, PODS, Resource
from finetune_operator.specs.naming import CHILDREN, OPERATOR_CLASS_LABEL


@dataclass(frozen=True)
class Scope:
    """One operator's part of the cluster. An empty `namespace` means all, an empty class the jobs that name none."""

    namespace: str = ""
    operator_class: str = ""

    def namespace_of(self, resource: Resource) -> str | None:
        """Where to ask for this kind; None: in the whole cluster."""
        return (self.namespace or None) if resource.namespaced else None

    def labels(self, resource: Resource) -> str:
        """Label selector for this kind."""
        if resource not in (JOBS, PODS):
            return ""
        mine = f"{OPERATOR_CLASS_LABEL}={self.operator_class}" if self.operator_class else f"!{OPERATOR_CLASS_LABEL}"
        return f"{CHILDREN},{mine}"

    def fields(self, resource: Resource) -> str:
        """Field selector for this kind. A FineTuneJob without a class counts as one whose class is empty."""
        return f"spec.operatorClass={self.operator_class}" if resource is FINETUNEJOBS else ""

    def mark(self, body: dict[str, Any]) -> dict[str, Any]:
        """The child, and the pods made from it, with the label by which this operator and no other finds them."""
        if not self.operator_class:
            return body
        marked = copy.deepcopy(body)
        for part in (marked, marked.get("spec", {}).get("template")):
            if part is not None:
                part["metadata"].setdefault("labels", {})[OPERATOR_CLASS_LABEL] = self.operator_class
        return marked
