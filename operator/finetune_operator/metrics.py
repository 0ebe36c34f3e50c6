"""The operator's own metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client import Counter as CounterMetric
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class JobsCollector(Collector):
    """finetune_operator_jobs{phase, namespace}: counted when asked, so that a deleted job never lingers."""

    def __init__(self, phases: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """`phases` yields (phase, namespace) of every job."""
        self._phases = phases

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("finetune_operator_jobs", "FineTuneJobs by phase.", labels=["phase", "namespace"])
        for labels, count in sorted(Counter(self._phases()).items()):
            family.add_metric(list(labels), count)
        yield family


class Metrics:
    """All metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self.reconcile_seconds = Histogram(
            "finetune_operator_reconcile_seconds",
            "Time to reconcile one FineTuneJob.",
            buckets=SECONDS,
            registry=registry,
        )
        self.reconcile_errors = CounterMetric(
            "finetune_operator_reconcile_errors", "Reconciles that ended in an error.", registry=registry
        )
        self.queue_depth = Gauge(
            "finetune_operator_queue_depth", "FineTuneJobs that wait for a worker.", registry=registry
        )
        self.queue_seconds = Histogram(
            "finetune_operator_queue_seconds",
            "Time from a change to the start of its reconcile.",
            buckets=SECONDS,
            registry=registry,
        )
        self.status_writes = CounterMetric("finetune_operator_status_writes", "Status updates sent.", registry=registry)
        self.api_requests = CounterMetric(
            "finetune_operator_api_requests",
            "Requests to the API server; code is the HTTP status, or error where none came.",
            ["verb", "resource", "code"],
            registry=registry,
        )
        self.progress_requests = CounterMetric(
            "finetune_operator_progress_requests",
            "Questions to trainers, by outcome.",
            ["outcome"],
            registry=registry,
        )
        self.audit_repairs = CounterMetric(
            "finetune_operator_audit_repairs",
            "Objects that the watch had missed and the audit found.",
            ["resource"],
            registry=registry,
        )
        self.leader = Gauge("finetune_operator_leader", "1 while this operator holds the Lease.", registry=registry)

    def count_jobs(self, phases: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """Serves finetune_operator_jobs from `phases`, which yields (phase, namespace)."""
        self.registry.register(JobsCollector(phases))
