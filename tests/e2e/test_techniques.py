"""Every technique in a pod: applied, trained for a moment, published in the formats that it is known for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jobs import brief, download, ended, has
from support.cluster import Cluster, Namespace, fresh_namespace
from support.waiting import Watched

WORD = {"placeholder": "<figure>", "vectors": 2, "initializer": "circle"}
PROMPT = "a photo of a sks circle"
JOBS: dict[str, dict[str, Any]] = {
    "words": {"method": {"textualInversion": {"tokens": [WORD]}}},
    "networks": {"method": {"hypernetwork": {"prompt": PROMPT}}},
    "pivotal": {
        "method": {"lora": {"prompt": "a photo of a <figure>", "rank": 4, "useDora": True, "tokens": [WORD]}},
        "training": {"steps": 20, "batchSize": 2, "optimizer": {"name": "Prodigy"}, "ema": True},
    },
    "whole": {
        "method": {"dreamBooth": {"prompt": PROMPT, "trainTextEncoder": True}},
        "training": {"steps": 20, "batchSize": 2, "learningRate": 0.0001, "loss": {"weighting": "MinSnr"}},
    },
}
OUTPUT = {"formats": ["Diffusers", "SingleFile"]}
WEIGHTS = {
    "words": ["embeddings/figure.safetensors"],
    "networks": ["hypernetwork/networks.pt", "hypernetwork/networks.safetensors"],
    "pivotal": ["lora/pytorch_lora_weights.safetensors", "embeddings/figure.safetensors", "lora/pivotal.safetensors"],
    "whole": ["pipeline", "whole.safetensors"],
}


@pytest.fixture(scope="module")
def submitted(cluster: Cluster) -> Any:
    """All of them at once; the cluster does them as it can."""
    with fresh_namespace(cluster, "techniques") as namespace:
        watched: dict[str, Watched] = {}
        for name, spec in JOBS.items():
            job = brief(namespace, name, steps=20, **spec)
            if name == "whole":
                job["spec"]["output"] |= OUTPUT
            namespace.apply(job)
            watched[name] = namespace.job(name)
        yield namespace, watched


@pytest.mark.parametrize("name", JOBS)
def test_it_is_trained_and_published(
    submitted: tuple[Namespace, dict[str, Watched]], s3: Any, tmp_path: Path, name: str
) -> None:
    namespace, watched = submitted
    job = watched[name].until(ended, seconds=600, what="the end")
    if not has("Succeeded")(job):
        print(namespace.story())
    assert has("Succeeded")(job), job["status"]
    results = download(s3, job, tmp_path)
    prefix = f"attempts/{results.manifest['attempt']}/"
    assert [path.removeprefix(prefix) for path in results.manifest["weights"]] == WEIGHTS[name]
    assert [path.removeprefix(prefix) for path in job["status"]["artifacts"]["weights"]] == WEIGHTS[name]
