"""DreamBooth with and without prior preservation, from the same seed: it learns, and the class stays what it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from jobs import download, ended, example, has, named
from judging import base_pipeline, full_pipeline, judge
from support.cluster import Namespace

pytestmark = pytest.mark.one_node
# Of 64 pictures each, drawn from the same noise.
FIDELITY_MARGIN = 0.5
LEAK_MARGIN = 0.15
CLASS_PROMPT = "a circle"


def test_learns_and_prior_preservation_lowers_the_leak(
    namespace: Namespace, s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_prior = example("dreambooth.yaml", namespace)
    without = named(with_prior, "without-prior")
    without["spec"]["method"] = copy.deepcopy(with_prior["spec"]["method"])
    del without["spec"]["method"]["dreamBooth"]["priorPreservation"]
    prompt = with_prior["spec"]["method"]["dreamBooth"]["prompt"]
    namespace.apply(with_prior, without)

    judged = {"base": (judge(base_pipeline(), prompt), judge(base_pipeline(), CLASS_PROMPT))}
    for job in (with_prior, without):
        name = job["metadata"]["name"]
        done = namespace.job(name).until(ended, seconds=1200, what="the end")
        assert has("Succeeded")(done), done["status"]
        results = download(s3, done, tmp_path / name)
        pipeline = full_pipeline(results.weights)
        judged[name] = (judge(pipeline, prompt), judge(pipeline, CLASS_PROMPT))
    with capsys.disabled():
        print()
        for name, (subject, other) in judged.items():
            print(f"{name}: fidelity {subject.subject:.2f}, leak {other.subject:.2f}, circles kept {other.circle:.2f}")

    base, preserved, plain = (judged[n] for n in ("base", "figure-dreambooth", "without-prior"))
    assert preserved[0].subject >= base[0].subject + FIDELITY_MARGIN
    assert preserved[1].subject <= plain[1].subject - LEAK_MARGIN
