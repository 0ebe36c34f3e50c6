"""Every metric of a training stands in the documentation, and nothing stands there that is none."""

from __future__ import annotations

import re
from pathlib import Path

from finetune_trainer.telemetry.listener import StepReport
from finetune_trainer.telemetry.metrics import Metrics
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

DOCS = Path(__file__).parents[2] / "docs"
OPERATORS = "finetune_operator_"
NO_METRICS = {"finetune_api", "finetune_trainer"}
"""Packages."""


def test_documentation_and_metrics_agree() -> None:
    metrics = Metrics("team", "dog", "lora")
    metrics.step(StepReport(1, 2, 0.5, 1e-4, 0.5, 1, seconds=0.25, ideal_seconds=0.1))
    families = list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
    # of counters people write what Prometheus has
    ours = {f"{one.name}_total" if one.type == "counter" else one.name for one in families}
    ours = {name for name in ours if not name.endswith("_created")}
    assert all(one.documentation for one in families)
    told = {name for file in DOCS.glob("*.md") for name in re.findall(r"`(finetune_[a-z_]+)", file.read_text())}
    told = {name for name in told if not name.startswith(OPERATORS)} - NO_METRICS
    assert told == ours
