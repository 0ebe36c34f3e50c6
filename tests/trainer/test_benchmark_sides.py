"""The benchmark's processes: each side trains, leaves weights, and says what it measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no part of what is installed

from benchmarks.trainer.cases import WARM_UP, Case
from benchmarks.trainer.processes import Failed, measure

STEPS = WARM_UP + 1
WEIGHTS = {
    ("lora", "ours"): "pytorch_lora_weights.safetensors",
    ("lora", "script"): "pytorch_lora_weights.safetensors",
    ("dreamBooth", "tuned"): "diffusion_pytorch_model.safetensors",
    ("textualInversion", "script"): "learned_embeds.safetensors",
}


@pytest.mark.parametrize(("technique", "side"), list(WEIGHTS))
def test_a_side_trains_and_measures(technique: str, side: str, tmp_path: Path) -> None:
    found = measure(Case("cpu", technique, 1, side, steps=STEPS), tmp_path)
    assert found.counted == 1
    assert 0 < found.step < found.first < found.job
    assert 0 < found.step_cpu < found.first_cpu
    assert found.resident > 1 << 28, "torch alone is larger"
    assert list((tmp_path / "work" / "output").rglob(WEIGHTS[technique, side]))


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="not more than the 10 of the warm-up"):
        measure(Case("cpu", "lora", 1, "script", steps=WARM_UP), tmp_path)
