"""The kinds the operator deals with, and where the API server keeps them."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.base import GROUP, VERSION


@dataclass(frozen=True)
class Resource:
    """One kind."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path of the collection, or of one object."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)


FINETUNEJOBS = Resource(GROUP, VERSION, "finetunejobs", "FineTuneJob")
FINETUNEPROFILES = Resource(GROUP, VERSION, "finetuneprofiles", "FineTuneProfile", namespaced=False)
JOBS = Resource("batch", "v1", "jobs", "Job")
PODS = Resource("", "v1", "pods", "Pod")
CONFIGMAPS = Resource("", "v1", "configmaps", "ConfigMap")
SERVICES = Resource("", "v1", "services", "Service")
CORE_EVENTS = Resource("", "v1", "events", "Event")
EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
WORKLOADS = Resource("kueue.x-k8s.io", "v1beta1", "workloads", "Workload")
