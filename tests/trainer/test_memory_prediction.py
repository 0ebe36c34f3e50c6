"""The memory that a training is predicted to take, beside what torch's allocator gives it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetune_api import TrainingRun
from finetune_api.engine import EngineSpec
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.planning.describing import describe
from finetune_trainer.planning.memory import predict
from support.allocations import bytes_of, peak_bytes
from support.prepared import prepared
from support.tiny_sdxl import build_tiny_sdxl
from support.training import PROMPT, make_run

CPU = torch.device("cpu")
TOTAL, WORKING = 0.10, 0.15
"""How far a prediction may be off: of everything, and of what comes and goes within a step."""
LARGE: dict[str, object] = {"resolution": 64}
TWICE: dict[str, object] = {"gradientCheckpointing": True}
HALF: dict[str, object] = {"weightsDtype": "bf16", "precision": "bf16", "optimizer": {"name": "AdamW8bit"}}
CASES: dict[str, tuple[str, dict[str, object], dict[str, object], dict[str, object]]] = {
    # technique, its own settings, training, dataset
    "adapter": ("lora", {}, {"batchSize": 2}, {}),
    "adapter, larger pictures": ("lora", {}, {"batchSize": 2}, LARGE),
    "adapter, computed twice": ("lora", {}, {"batchSize": 4, **TWICE}, LARGE),
    "adapter, bf16": ("lora", {}, {"batchSize": 2, "precision": "bf16"}, LARGE),
    "adapter, text encoder too": ("lora", {"trainTextEncoder": True}, {"batchSize": 4}, {}),
    "all weights": ("dreamBooth", {}, {"batchSize": 4}, {}),
    "all weights, computed twice": ("dreamBooth", {}, {"batchSize": 4, **TWICE}, LARGE),
    "all weights, text encoder too, computed twice": (
        "dreamBooth", {"trainTextEncoder": True}, {"batchSize": 2, **TWICE}, LARGE,
    ),
    "all weights, two micro-batches": ("dreamBooth", {}, {"batchSize": 2, "gradientAccumulationSteps": 2}, {}),
    "all weights, average, moments of a byte": (
        "dreamBooth", {}, {"ema": True, "optimizer": {"name": "AdamW8bit"}}, {},
    ),
    "all weights, Adafactor": ("dreamBooth", {}, {"optimizer": {"name": "Adafactor"}}, {}),
    "all weights in bf16": ("dreamBooth", {}, {"batchSize": 2, **HALF}, {}),
    "all weights in bf16, computed twice": ("dreamBooth", {}, {"batchSize": 4, **HALF, **TWICE}, LARGE),
    "all weights in bf16, text encoder too, two micro-batches": (
        "dreamBooth", {"trainTextEncoder": True}, {"gradientAccumulationSteps": 2, **HALF}, {},
    ),
    "all weights in bf16, average": ("dreamBooth", {}, {"ema": True, **HALF}, {}),
    "all weights, Prodigy": ("dreamBooth", {}, {"optimizer": {"name": "Prodigy"}, "learningRate": 1}, {}),
}  # fmt: skip


def run_of(name: str, **larger: object) -> TrainingRun:
    technique, method, training, dataset = CASES[name]
    method = {"prompt": PROMPT} | ({"rank": 4} if technique == "lora" else {}) | method
    training = {"steps": 3, "learningRate": 1e-3} | training
    return make_run(technique, method={technique: method}, training=training, dataset=dataset | larger)


def check(name: str, model: Path, pictures: Path) -> None:
    """Predicts, trains two steps, and compares."""
    run = run_of(name)
    made = prepared(run, model, pictures)
    spec, steps = run.training, [made.samples.step(step) for step in range(2)]
    parts = made.family.parts.values()
    described = describe(made.module, parts, made.groups, spec, steps[0], CPU)
    predicted = predict(described, EngineSpec(kind="Eager"), spec.gradient_checkpointing)

    engine = EagerEngine(CPU)
    engine.prepare(made.module, made.groups, spec, steps[0])
    # an optimizer makes its state in the first step
    engine.step(steps[0], 1.0)
    parameters = [value for group in made.groups for value in group.parameters.values()]
    remembered = [value for one in parameters for value in engine._optimizer.state[one].values()]
    averages = engine._average.weights.values() if engine._average is not None else ()
    weights = [value for part in parts for value in (*part.parameters(), *part.buffers())]
    kept = bytes_of([*weights, *parameters, *(one for one in remembered if torch.is_tensor(one)), *averages])
    working = peak_bytes(lambda: engine.step(steps[1], 1.0))
    assert predicted.total == pytest.approx(kept + working, rel=TOTAL)
    assert predicted.working == pytest.approx(working, rel=WORKING)


@pytest.mark.parametrize("name", CASES)
def test_predicted_is_what_torch_allocates(name: str, tiny_sd: Path, pictures: Path) -> None:
    check(name, tiny_sd, pictures)


def test_a_model_with_two_text_encoders(pictures: Path, tmp_path: Path) -> None:
    check("all weights, text encoder too, computed twice", build_tiny_sdxl(tmp_path / "model"), pictures)


def test_frozen_weights_in_half_precision(tiny_sd: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    for place in ("planning.describing", "engines.eager"):
        monkeypatch.setattr(f"finetune_trainer.{place}.half_for", lambda precision, device: torch.bfloat16)
    check("adapter, bf16", tiny_sd, pictures)


def test_larger_pictures_are_predicted_from_smaller_ones(tiny_sd: Path, pictures: Path) -> None:
    """Of buckets, the first batch need not have the largest shape."""
    small, large = (
        prepared(make_run("dreamBooth", training={"batchSize": 2}, dataset={"resolution": side}), tiny_sd, pictures)
        for side in (64, 128)
    )
    spec = make_run("dreamBooth").training
    guess = describe(small.module, [], small.groups, spec, small.samples.step(0), CPU, area=4)
    known = describe(large.module, [], large.groups, spec, large.samples.step(0), CPU)
    eager = EngineSpec(kind="Eager")
    assert predict(guess, eager, False).working == pytest.approx(predict(known, eager, False).working, rel=0.05)


def test_looking_changes_nothing(tiny_sd: Path, pictures: Path) -> None:
    """Neither what is drawn afterwards, nor whether activations are computed twice."""
    run = make_run("dreamBooth", training={"steps": 1})
    losses = []
    for looks in (False, True):
        made = prepared(run, tiny_sd, pictures)
        batches = made.samples.step(0)
        blocks = [vars(block).get("gradient_checkpointing") for block in made.module.modules()]
        torch.manual_seed(0)
        if looks:
            describe(made.module, [], made.groups, run.training, batches, CPU)
        assert [vars(block).get("gradient_checkpointing") for block in made.module.modules()] == blocks
        losses.append((made.module(batches[0])[0].item(), torch.rand(1).item()))
    assert losses[0] == losses[1]


def test_looking_takes_less_memory_than_a_step(tiny_sd: Path, pictures: Path) -> None:
    """Two samples are looked at, but what they would keep is let go."""
    run = make_run("dreamBooth", training={"steps": 1}, dataset=LARGE)
    made = prepared(run, tiny_sd, pictures)
    batches = made.samples.step(0)
    looked = peak_bytes(lambda: describe(made.module, [], made.groups, run.training, batches, CPU))

    def step() -> None:
        made.module(batches[0])[0].backward()

    assert looked < peak_bytes(step) / 2


def test_what_saves_memory_is_predicted_to(tiny_sd: Path, pictures: Path) -> None:
    run = make_run("dreamBooth", training={"steps": 1, "batchSize": 4}, dataset=LARGE)
    made = prepared(run, tiny_sd, pictures)
    found = describe(made.module, made.family.parts.values(), made.groups, run.training, made.samples.step(0), CPU)
    eager = EngineSpec(kind="Eager")
    falling = [
        predict(found, eager, checkpointing=False),
        predict(found, eager, checkpointing=True),
        predict(found, eager, checkpointing=True, cuts=2),
        predict(found, eager, checkpointing=True, cuts=4),
        predict(replace(found, optimizer="AdamW8bit"), eager, checkpointing=True, cuts=4),
        predict(replace(found, optimizer="Adafactor"), eager, checkpointing=True, cuts=4),
    ]
    totals = [each.total for each in falling]
    assert totals == sorted(set(totals), reverse=True)
