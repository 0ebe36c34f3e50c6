"""Metrics of how well the machine is used, found out when they are asked for: their window is long, and a step is
short."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_trainer.telemetry.efficiency import Efficiency

LABELS = ("namespace", "finetunejob", "method")


class Use(Collector):
    """Implements Prometheus' Collector."""

    def __init__(self, labels: Sequence[str], efficiency: Efficiency) -> None:
        """`labels` are the values of LABELS."""
        self._labels, self._efficiency = tuple(labels), efficiency

    def collect(self) -> Iterator[Metric]:
        performance = self._efficiency.performance()
        text = "Memory of the process (resident), and what torch holds on its GPU: now (device), at most (devicePeak)"
        memory = GaugeMetricFamily("finetune_memory_bytes", text, labels=(*LABELS, "kind"))
        for kind, held in performance.memory_bytes.items():
            memory.add_metric((*self._labels, kind), held)
        yield memory

        text = "Time of a step that this share of the last 1000 did not exceed, without the first of the attempt"
        quantiles = GaugeMetricFamily("finetune_training_step_quantile_seconds", text, labels=(*LABELS, "quantile"))
        for share, seconds in (("0.5", performance.step_seconds_p50), ("0.99", performance.step_seconds_p99)):
            if seconds is not None:
                quantiles.add_metric((*self._labels, share), seconds)
        yield quantiles

        mfu = GaugeMetricFamily(
            "finetune_training_mfu",
            "Model FLOPs utilisation, 0 to 1: its arithmetic over the device's measured peak",
            labels=LABELS,
        )
        if performance.mfu is not None:
            mfu.add_metric(self._labels, performance.mfu)
        yield mfu

        text = "Time that went into data, step, checkpoint, judging and drawing"
        time = CounterMetricFamily("finetune_time_seconds", text, labels=(*LABELS, "activity"))
        for activity, seconds in self._efficiency.seconds.items():
            time.add_metric((*self._labels, activity), seconds)
        yield time
