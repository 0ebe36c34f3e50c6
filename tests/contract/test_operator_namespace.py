"""An operator for one namespace, with the Role that the chart gives it there and nothing beyond it."""

from __future__ import annotations

import secrets
from pathlib import Path

from support.operating import SYSTEM, ChartRights, Place
from support.replicas import leader_of, replica
from test_operator_lifecycle import RESULT, phase

CLUSTER_SCOPED = {"finetuneprofiles"}


def test_one_namespace_is_served_and_no_other_is_touched(own_place: Place, api_server: Path, tmp_path: Path) -> None:
    other = Place(api_server, f"other-{secrets.token_hex(4)}", operator_class=own_place.operator_class)
    other.make()
    values = {"operatorClass": own_place.operator_class, "watchNamespace": own_place.name}
    rights = ChartRights(api_server, tmp_path, own_place.name, **values)
    try:
        foreign = other.submit("dog")
        with replica(rights, api_server, "single", audit_seconds=3) as one:
            leader_of([one])
            watched = own_place.submit("dog")
            pod = own_place.pod("dog")
            own_place.runs(pod)
            # a profile belongs to no namespace: it is watched all the same
            own_place.make_profile(f"{own_place.name}-late")
            own_place.submit("late", profileName=f"{own_place.name}-late")
            own_place.job("late")
            own_place.ends(pod, 0, **RESULT)
            watched.until(phase("Succeeded"), seconds=30, what="success")
            assert "status" not in foreign.now()
            assert other.pods("dog") == []
            asked = {(r.namespace, r.right.resource) for r in one.proxy.requests if r.right is not None}
            assert {resource for namespace, resource in asked if not namespace} == CLUSTER_SCOPED
            assert {namespace for namespace, _ in asked} == {"", own_place.name, SYSTEM}
            assert {resource for namespace, resource in asked if namespace == SYSTEM} == {"leases"}
            assert not [request for request in one.proxy.requests if request.status == 403]
    finally:
        own_place.custom.delete_cluster_custom_object(
            "finetune.dev", "v1alpha1", "finetuneprofiles", f"{own_place.name}-late"
        )
        other.clear()
