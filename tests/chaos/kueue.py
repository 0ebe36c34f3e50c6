"""What Kueue does to a Job, from its documented behaviour.

Admission: https://kueue.sigs.k8s.io/docs/concepts/workload/ - the Job is un-suspended, and the flavor's node selector,
tolerations and labels are merged into its pod template (https://kueue.sigs.k8s.io/docs/concepts/resource_flavor/).
Eviction: https://kueue.sigs.k8s.io/docs/concepts/preemption/ - the Job is suspended and its template restored; the
pods get a SIGTERM and no condition DisruptionTarget. Neither is anybody else's to write.
"""

from __future__ import annotations

from finetune_operator.resources import JOBS
from support.memory_api import Body, MemoryApi

from chaos.job_controller import condition

WHO = "kueue"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def is_queued(job: Body) -> bool:
    """Whether the Job is Kueue's to admit."""
    return QUEUE_LABEL in (job["metadata"].get("labels") or {}) and not _over(job)


def admit(api: MemoryApi, job: Body) -> None:
    if not job["spec"].get("suspend"):
        return
    template = job["spec"]["template"]
    pod = {
        **template["spec"],
        "nodeSelector": {**(template["spec"].get("nodeSelector") or {}), "flavor": "gpu"},
        "tolerations": [*(template["spec"].get("tolerations") or []), TOLERATION],
    }
    labels = {**template["metadata"]["labels"], "kueue.x-k8s.io/podset": "main"}
    admitted = {"metadata": {**template["metadata"], "labels": labels}, "spec": pod}
    api.update(WHO, JOBS, job, spec={**job["spec"], "suspend": False, "template": admitted})


def evict(api: MemoryApi, job: Body) -> None:
    if job["spec"].get("suspend"):
        return
    template = job["spec"]["template"]
    selector = {k: v for k, v in template["spec"]["nodeSelector"].items() if k != "flavor"}
    pod = {**template["spec"], "nodeSelector": selector, "tolerations": template["spec"]["tolerations"][:-1]}
    labels = {k: v for k, v in template["metadata"]["labels"].items() if k != "kueue.x-k8s.io/podset"}
    restored = {"metadata": {**template["metadata"], "labels": labels}, "spec": pod}
    status = {key: value for key, value in (job.get("status") or {}).items() if key != "startTime"}
    api.update(WHO, JOBS, job, spec={**job["spec"], "suspend": True, "template": restored}, status=status)


def _over(job: Body) -> bool:
    return bool(condition(job, "Complete") or condition(job, "Failed") or job["metadata"].get("deletionTimestamp"))
