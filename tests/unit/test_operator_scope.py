"""What an operator asks the API server for, and what it marks its children with."""

from __future__ import annotations

import pytest
from finetune_operator.resources import CORE_EVENTS, FINETUNEJOBS, FINETUNEPROFILES, JOBS, PODS
from finetune_operator.scope import Scope
from finetune_operator.specs.naming import CHILDREN, OPERATOR_CLASS_LABEL
from finetune_operator.watching import settings

MINE = {"": f"{CHILDREN},!{OPERATOR_CLASS_LABEL}", "gpu": f"{CHILDREN},{OPERATOR_CLASS_LABEL}=gpu"}


@pytest.mark.parametrize("name", ["", "gpu"])
def test_only_objects_of_the_own_class_are_listed_and_watched(name: str) -> None:
    scope = Scope(operator_class=name)
    assert {r: scope.labels(r) for r in (JOBS, PODS)} == dict.fromkeys((JOBS, PODS), MINE[name])
    assert scope.fields(FINETUNEJOBS) == f"spec.operatorClass={name}"
    assert (scope.labels(FINETUNEPROFILES), scope.fields(FINETUNEPROFILES)) == ("", ""), "profiles are for all classes"

    watching = settings((FINETUNEJOBS, FINETUNEPROFILES, JOBS, PODS, CORE_EVENTS), scope).watching
    assert set(watching.label_selectors.values()) == {MINE[name]}
    assert len(watching.label_selectors) == 2
    assert f"spec.operatorClass={name}" in watching.field_selectors.values()


def test_children_and_their_pods_carry_the_class() -> None:
    job = {"metadata": {"labels": {"a": "b"}}, "spec": {"template": {"metadata": {}}}}
    marked = Scope(operator_class="gpu").mark(job)
    assert marked["metadata"]["labels"] == {"a": "b", OPERATOR_CLASS_LABEL: "gpu"}
    assert marked["spec"]["template"]["metadata"]["labels"] == {OPERATOR_CLASS_LABEL: "gpu"}
    assert Scope(operator_class="gpu").mark({"metadata": {}}) == {"metadata": {"labels": {OPERATOR_CLASS_LABEL: "gpu"}}}
    assert job["spec"]["template"] == {"metadata": {}}, "what was given stays as it was"
    assert Scope().mark(job) == job


def test_one_namespace() -> None:
    scope = Scope("team-a")
    assert {r: scope.namespace_of(r) for r in (FINETUNEJOBS, PODS, FINETUNEPROFILES)} == {
        FINETUNEJOBS: "team-a",
        PODS: "team-a",
        FINETUNEPROFILES: None,
    }
    assert Scope().namespace_of(PODS) is None
