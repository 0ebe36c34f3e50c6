"""Questions to Prometheus, and those that the Grafana dashboard asks."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DASHBOARD = Path(__file__).parents[2] / "charts/finetune-operator/dashboards/finetunejob.json"


@dataclass(frozen=True)
class Series:
    """One series of an answer; ``points`` are (Unix time in seconds, value), one for an instant query."""

    labels: dict[str, str]
    points: list[tuple[float, float]]

    @property
    def last(self) -> float:
        return self.points[-1][1]


@dataclass(frozen=True)
class Prometheus:
    """Prometheus' HTTP API at ``url``."""

    url: str

    def query(self, promql: str) -> list[Series]:
        """The answer of this moment. Raises urllib.error.HTTPError for a query that is not PromQL."""
        return [
            Series(found["metric"], [(float(found["value"][0]), float(found["value"][1]))])
            for found in self._ask("query", query=promql)
        ]

    def query_range(self, promql: str, *, start: float, end: float, step: float = 2.0) -> list[Series]:
        """The answers from ``start`` to ``end`` (Unix seconds), every ``step`` seconds."""
        asked = self._ask("query_range", query=promql, start=str(start), end=str(end), step=str(step))
        return [Series(found["metric"], [(float(t), float(v)) for t, v in found["values"]]) for found in asked]

    def _ask(self, what: str, **parameters: str) -> list[dict]:
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return json.load(answer)["data"]["result"]


def dashboard_queries(**variables: str) -> Iterator[tuple[str, str]]:
    """(panel's title, PromQL) for every query of the dashboard, its variables filled in.

    ``$__rate_interval`` is 1m, as Grafana makes it of a scrape interval of 15 s. Raises KeyError for a variable that
    is not given.
    """
    values = variables | {"__rate_interval": "1m"}
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], re.sub(r"\$(\w+)", lambda match: values[match[1]], target["expr"])
