"""A stand-in for Kueue: does to batch/v1 Jobs what Kueue does. When one is admitted or evicted is for the test to say.

Written from Kueue's documentation (kueue.sigs.k8s.io/docs: concepts/workload, concepts/preemption, tasks/run/jobs) and
from what its source does (github.com/kubernetes-sigs/kueue at ff69552, 2026-08-22):

- ``pkg/controller/jobframework/reconciler.go``: one Workload for each Job with a queue name whose owner Kueue does not
  know; it is owned by the Job and has the label ``kueue.x-k8s.io/job-uid`` (ConstructWorkload). An admitted Workload
  starts its suspended Job (startJob, in one patch), an evicted one stops it, and only when no pod of the Job is active
  the quota is given back and the Workload is pending again (step 6). A Job that runs without admission is stopped
  (step 8).
- ``pkg/controller/jobs/job/job_controller.go``: Stop patches thrice: suspend with the annotation ``stopping``, then
  status.startTime away, then the pod template as it was. RunWithPodSetsInfo and RestorePodSetsInfo say what of the
  template is Kueue's.
- ``pkg/podset/podset.go``: Merge adds labels, annotations, node selectors and tolerations and refuses to change what is
  there; RestorePodSpec puts them back.
- ``pkg/workload/workload.go``, ``admissionchecks.go``, ``evict/evict.go``: conditions, their reasons and messages.

Left out: quota and scheduling (`admit` and `evict` stand for them), partial admission, topology, several clusters, and
the webhook that suspends a new Job: what needs it is stopped a moment later and stands in `unsuspended`.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from types import TracebackType
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from support.waiting import eventually

MANAGER = "kueue"
"""Field manager of every write."""
GROUP, VERSION, PLURAL = "kueue.x-k8s.io", "v1beta1", "workloads"
QUEUE_LABEL = f"{GROUP}/queue-name"
PRIORITY_LABEL = f"{GROUP}/priority-class"
JOB_UID_LABEL = f"{GROUP}/job-uid"
STOPPING = f"{GROUP}/stopping"
PODSET_LABEL = f"{GROUP}/podset"
POD_SET = "main"
EVERY_SECONDS = 0.3
MERGE = "application/merge-patch+json"
PENDING = (
    "couldn't assign flavors to pod set main: insufficient unused quota for memory in flavor default, 1Gi more needed"
)
PREEMPTED = "Preempted to accommodate a workload (UID: 5f1c, JobUID: 77a0) due to prioritization in the ClusterQueue"

Object = dict[str, Any]


def workload_crd() -> Object:
    """The Workload's definition: both served versions, any fields. Kueue's own names all fields."""
    anything = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    versions = [
        {"name": name, "served": True, "storage": storage, "schema": anything, "subresources": {"status": {}}}
        for name, storage in (("v1beta1", False), ("v1beta2", True))
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {"kind": "Workload", "listKind": "WorkloadList", "plural": PLURAL, "singular": "workload"},
            "versions": versions,
        },
    }


@dataclass(frozen=True)
class Flavor:
    """What admission adds to a Job's pod template: a ResourceFlavor's node labels and tolerations, and labels that an
    admission check may add."""

    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[Object, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


class Kueue:
    """Looks after the Jobs of one namespace from ``with Kueue(...)`` to its end."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._batch = client.BatchV1Api(api)
        self._custom = client.CustomObjectsApi(api)
        self._api = api
        self.namespace = namespace
        self.unsuspended: list[str] = []
        """Names of Jobs that ran without admission, which Kueue's webhook would have kept from it."""
        self.errors: list[BaseException] = []
        self._flavors: dict[str, Flavor] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kueue", daemon=True)

    def __enter__(self) -> Kueue:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(timeout=30)
        if error is None:
            assert not self.errors, f"the stand-in for Kueue failed: {self.errors!r}"

    @staticmethod
    def install(api: client.ApiClient) -> None:
        """Makes the Workload's definition, if it is not there, and waits until it is served."""
        try:
            client.ApiextensionsV1Api(api).create_custom_resource_definition(workload_crd())
        except ApiException as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
        custom = client.CustomObjectsApi(api)
        eventually(lambda: custom.list_cluster_custom_object(GROUP, VERSION, PLURAL), seconds=30, on=ApiException)

    @staticmethod
    def uninstall(api: client.ApiClient) -> None:
        client.ApiextensionsV1Api(api).delete_custom_resource_definition(f"{PLURAL}.{GROUP}")

    def admit(self, name: str, flavor: Flavor | None = None) -> None:
        """The scheduler has found room for the Job ``name``, whose Workload must be there or come soon."""
        self._flavors[name] = flavor or Flavor()
        workload = eventually(lambda: self._workload_of(name), seconds=30)
        conditions = _conditions(workload)
        for kind in ("Evicted", "Preempted"):
            if conditions.get(kind, {}).get("status") == "True":
                _set(workload, kind, "False", "QuotaReserved", f"Previously: {conditions[kind]['message']}")
        workload.setdefault("status", {})["admission"] = {
            "clusterQueue": "cluster-queue",
            "podSetAssignments": [{"name": POD_SET, "flavors": {"cpu": "default", "memory": "default"}, "count": 1}],
        }
        _set(workload, "QuotaReserved", "True", "QuotaReserved", "Quota reserved in ClusterQueue cluster-queue")
        _set(workload, "Admitted", "True", "Admitted", "The workload is admitted")
        self._write_status(workload)

    def evict(self, name: str, reason: str = "Preempted", message: str = PREEMPTED) -> None:
        """The Job ``name`` has to give back its quota."""
        workload = eventually(lambda: self._workload_of(name), seconds=30)
        _set(workload, "Evicted", "True", reason, message)
        if reason == "Preempted":
            _set(workload, "Preempted", "True", "InClusterQueue", message)
        self._write_status(workload)

    def workload(self, name: str) -> Object:
        """The Workload of the Job ``name``. Raises AssertionError when there is none."""
        return self._workload_of(name)

    def _work(self) -> None:
        while not self._ending.wait(EVERY_SECONDS):
            try:
                for job in self._jobs():
                    self._reconcile(job)
            except ApiException as error:
                # somebody else was faster, the job is gone, or the server is away: the next pass sees what is there
                if error.status not in (HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND, HTTPStatus.INTERNAL_SERVER_ERROR):
                    self.errors.append(error)
            except Exception as error:
                self.errors.append(error)

    def _jobs(self) -> list[Object]:
        found = self._batch.list_namespaced_job(self.namespace, label_selector=QUEUE_LABEL).items
        return [self._api.sanitize_for_serialization(job) for job in found]

    def _workload_of(self, name: str) -> Object:
        job = next((j for j in self._jobs() if j["metadata"]["name"] == name), None)
        assert job is not None, f"there is no Job {name} with a queue name"
        workload = self._find_workload(job)
        assert workload is not None, f"the Job {name} has no Workload yet"
        return workload

    def _find_workload(self, job: Object) -> Object | None:
        selector = f"{JOB_UID_LABEL}={job['metadata']['uid']}"
        found = self._custom.list_namespaced_custom_object(
            GROUP, VERSION, self.namespace, PLURAL, label_selector=selector
        )
        return next(iter(found["items"]), None)

    def _reconcile(self, job: Object) -> None:
        workload = self._find_workload(job)
        if workload is None:
            if not job["metadata"].get("deletionTimestamp") and not _finished(job):
                self._make_workload(job)
            return
        conditions = _conditions(workload)
        evicted, admitted = (conditions.get(kind, {}).get("status") == "True" for kind in ("Evicted", "Admitted"))
        if end := _finished(job):
            if "Finished" not in conditions:
                _set(workload, "Finished", "True", "Succeeded" if end["type"] == "Complete" else "Failed", "")
                self._write_status(workload)
        elif evicted:
            self._stop(job, workload)
            if not (job.get("status") or {}).get("active") and _reserved(workload):
                self._pend(workload, conditions["Evicted"]["message"])
        elif admitted and _suspended(job):
            self._start(job)
        elif not admitted and not _suspended(job):
            self.unsuspended.append(job["metadata"]["name"])
            self._stop(job, workload)

    def _make_workload(self, job: Object) -> None:
        meta, labels = job["metadata"], job["metadata"].get("labels") or {}
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": meta["name"],
            "uid": meta["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        spec = {
            "active": True,
            "queueName": labels[QUEUE_LABEL],
            "podSets": [{"name": POD_SET, "count": job["spec"].get("parallelism", 1), "template": _template(job)}],
        }
        if priority := labels.get(PRIORITY_LABEL):
            spec |= {"priorityClassName": priority, "priorityClassSource": f"{GROUP}/workloadpriorityclass"}
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "Workload",
            "metadata": {
                "name": f"job-{meta['name']}-{meta['uid'][:5]}",
                "labels": {JOB_UID_LABEL: meta["uid"]},
                "ownerReferences": [owner],
            },
            "spec": spec,
        }
        made = self._custom.create_namespaced_custom_object(
            GROUP, VERSION, self.namespace, PLURAL, body, field_manager=MANAGER
        )
        self._pend(made, PENDING)

    def _pend(self, workload: Object, message: str) -> None:
        """Without quota, and waiting for it."""
        workload.setdefault("status", {}).pop("admission", None)
        _set(workload, "QuotaReserved", "False", "Pending", message)
        if "Admitted" in _conditions(workload):
            _set(workload, "Admitted", "False", "NoReservation", "The workload has no reservation")
        if _conditions(workload).get("Evicted", {}).get("status") == "True":
            _set(workload, "Requeued", "True", _conditions(workload)["Evicted"]["reason"], message)
        self._write_status(workload)

    def _start(self, job: Object) -> None:
        """startJob with RunWithPodSetsInfo: one patch. Raises ValueError where Merge refuses."""
        flavor = self._flavors[job["metadata"]["name"]]
        template = _template(job)
        labels = _merged(template["metadata"].get("labels"), flavor.labels | {PODSET_LABEL: POD_SET})
        selector = _merged(template["spec"].get("nodeSelector"), flavor.node_selector)
        tolerations = list(template["spec"].get("tolerations") or [])
        tolerations += [t for t in flavor.tolerations if t not in tolerations]
        pod_template = {
            "metadata": {"labels": labels},
            "spec": {"nodeSelector": selector or None, "tolerations": tolerations},
        }
        self._patch(job, {"spec": {"suspend": False, "template": pod_template}})

    def _stop(self, job: Object, workload: Object) -> None:
        """Stop: three patches, of which a crash in between leaves a Job that is stopped again."""
        if not _suspended(job):
            self._patch(job, {"metadata": {"annotations": {STOPPING: "true"}}, "spec": {"suspend": True}})
        elif STOPPING not in (job["metadata"].get("annotations") or {}):
            return
        if (job.get("status") or {}).get("startTime"):
            self._batch.patch_namespaced_job_status(
                job["metadata"]["name"],
                self.namespace,
                {"status": {"startTime": None}},
                field_manager=MANAGER,
                _content_type=MERGE,
            )
        original = workload["spec"]["podSets"][0]["template"]
        now = _template(job)
        pod_template = {
            "metadata": {"labels": _replaced(now["metadata"].get("labels"), original["metadata"].get("labels"))},
            "spec": {
                "nodeSelector": _replaced(now["spec"].get("nodeSelector"), original["spec"].get("nodeSelector")),
                "tolerations": original["spec"].get("tolerations") or None,
            },
        }
        self._patch(job, {"metadata": {"annotations": {STOPPING: None}}, "spec": {"template": pod_template}})

    def _patch(self, job: Object, body: Object) -> None:
        """A merge patch, as Kueue's: a list is replaced whole."""
        self._batch.patch_namespaced_job(
            job["metadata"]["name"], self.namespace, body, field_manager=MANAGER, _content_type=MERGE
        )

    def _write_status(self, workload: Object) -> None:
        """Replaces the status. Raises ApiException 409 when the Workload has changed meanwhile."""
        self._custom.replace_namespaced_custom_object_status(
            GROUP, VERSION, self.namespace, PLURAL, workload["metadata"]["name"], workload, field_manager=MANAGER
        )


def owners_of(job: Object, path: tuple[str, ...]) -> set[str]:
    """Names of the field managers that own the field at ``path``, such as ("spec", "suspend"), by the managedFields."""
    owners = set()
    for entry in job["metadata"].get("managedFields") or []:
        fields = entry.get("fieldsV1") or {}
        for part in path:
            fields = fields.get(f"f:{part}") if fields is not None else None
        if fields is not None:
            owners.add(str(entry["manager"]))
    return owners


def _suspended(job: Object) -> bool:
    return bool(job["spec"].get("suspend"))


def _finished(job: Object) -> Object | None:
    conditions = (job.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] in ("Complete", "Failed") and c["status"] == "True"), None)


def _reserved(workload: Object) -> bool:
    return _conditions(workload).get("QuotaReserved", {}).get("status") == "True"


def _template(job: Object) -> Object:
    """The pod template, without the labels that are the Job controller's."""
    template: Object = copy.deepcopy(job["spec"]["template"])
    labels = template.setdefault("metadata", {}).get("labels") or {}
    theirs = {"controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"}
    template["metadata"]["labels"] = {key: value for key, value in labels.items() if key not in theirs}
    return template


def _merged(there: dict[str, str] | None, added: dict[str, str]) -> dict[str, str]:
    there = there or {}
    conflicts = [key for key in added if key in there and there[key] != added[key]]
    if conflicts:
        raise ValueError(f"conflict for {conflicts}: the pod template has {there}, admission adds {added}")
    return there | added


def _replaced(there: dict[str, str] | None, wanted: dict[str, str] | None) -> dict[str, str | None]:
    """As a merge patch that leaves ``wanted`` and nothing else."""
    return {key: None for key in there or {} if key not in (wanted or {})} | (wanted or {})


def _conditions(workload: Object) -> dict[str, Object]:
    return {c["type"]: c for c in (workload.get("status") or {}).get("conditions") or []}


def _set(workload: Object, kind: str, status: str, reason: str, message: str) -> None:
    conditions = workload.setdefault("status", {}).setdefault("conditions", [])
    conditions[:] = [c for c in conditions if c["type"] != kind]
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions.append({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at})
