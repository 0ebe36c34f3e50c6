"""The compiled engine takes the reference's steps, keeps what it compiled, and does without where torch cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from finetune_trainer.data.samples import Batch
from finetune_trainer.engines.compiled import CompiledEngine, denoiser_of
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.methods import ParameterGroup
from support.stepping import numbers_of, stepping
from support.toys import batch_of
from support.training import make_run
from torch import Tensor, nn

CPU = torch.device("cpu")
needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++")


class Parts(nn.Module):
    """A small part and a large one, which knows how often Python ran it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        small, large = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        self.parts = nn.ModuleDict({"text": small, "denoiser": large})

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs = torch.linspace(-1, 1, 8).repeat(4, 1) * (1 + batch.timesteps)
        losses = (self.parts["denoiser"](self.parts["text"](inputs)) - inputs.flip(1)).square().mean(1)
        return losses.mean() * batch.weights.sum(), losses


def losses_of(engine: EagerEngine, steps: int = 4) -> list[float]:
    module = Parts()
    spec = make_run(training={"learningRate": 2**-5}).training
    engine.prepare(module, [ParameterGroup("all", dict(module.named_parameters()))], spec, [batch_of()])
    return [float(engine.step([batch_of(number=step)], 1.0).loss) for step in range(steps)]


def test_the_largest_part_is_compiled() -> None:
    module = Parts()
    assert denoiser_of(module) is module.parts["denoiser"]


@needs_a_compiler
def test_steps_are_the_references(tmp_path: Path) -> None:
    """To what float32 says of sums that are added up in another order. Code is kept under one name, and a process that
    finds it there compiles nothing."""
    expected = losses_of(EagerEngine(CPU))
    assert losses_of(CompiledEngine(CPU, tmp_path)) == pytest.approx(expected, rel=1e-5)
    (kept,) = (tmp_path / "compiled").iterdir()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # as in another pod: what inductor keeps for itself is gone
    with torch._inductor.utils.fresh_cache():
        assert losses_of(CompiledEngine(CPU, tmp_path)) == pytest.approx(expected, rel=1e-5)
    counted = torch._dynamo.utils.counters
    assert counted["aot_autograd"]["autograd_cache_hit"] + counted["inductor"]["fxgraph_cache_hit"] > 0
    assert counted["inductor"]["fxgraph_cache_miss"] == counted["aot_autograd"]["autograd_cache_miss"] == 0
    assert [kept] == list((tmp_path / "compiled").iterdir())


@pytest.mark.parametrize("technique", ["lora", "hypernetwork"])
def test_the_denoiser_is_traced_with_what_is_installed_in_it(technique: str, tiny_sd: Path, pictures: Path) -> None:
    """torch's tracer, without a compiler behind it. The module itself stays as it was, for whoever draws with it."""
    run = make_run(technique, training={"learningRate": 2**-7})
    one = stepping(run, EagerEngine(CPU), tiny_sd, pictures)
    other = stepping(run, CompiledEngine(CPU, None, backend="aot_eager"), tiny_sd, pictures)
    torch._dynamo.utils.counters.clear()
    for step in range(2):
        assert float(other.step(step).loss) == pytest.approx(float(one.step(step).loss), rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert sum(torch._dynamo.utils.counters["graph_break"].values()) == 0, "one graph"
    assert "forward" not in vars(other.family.parts["unet"])
    theirs, ours = numbers_of(one.engine.state()), numbers_of(other.engine.state())
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5)


def test_a_model_that_torch_cannot_compile_is_captured(caplog: pytest.LogCaptureFixture) -> None:
    """The rehearsal that failed left no trace: the steps are the reference's to the bit."""
    caplog.set_level("WARNING")

    def refuse(graph: object, inputs: object) -> object:
        raise RuntimeError("no such instruction")

    torch._dynamo.reset()
    engine = CompiledEngine(CPU, None, backend=refuse)  # type: ignore[arg-type]  # torch takes a function as well
    assert losses_of(engine) == losses_of(EagerEngine(CPU))
    (said,) = [record.message for record in caplog.records if record.name == "finetune"]
    assert "torch cannot compile this model; steps are captured as they are" in said
    assert "no such instruction" in said


@pytest.mark.parametrize("kept", [True, False])
def test_that_minutes_will_pass_is_told(
    kept: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "finetune")
    monkeypatch.setattr(CompiledEngine, "_is_kept", lambda engine, name: kept)
    losses_of(CompiledEngine(CPU, tmp_path, backend="aot_eager"), 2)
    told = [
        line for line in caplog.messages if "torch compiles the model for a shape of batches, which takes min" in line
    ]
    assert len(told) == (0 if kept else 1)


@needs_a_compiler
def test_code_that_is_damaged_is_compiled_anew(tmp_path: Path) -> None:
    expected = losses_of(CompiledEngine(CPU, tmp_path), 1)
    (kept,) = (tmp_path / "compiled").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    torch._dynamo.reset()
    assert losses_of(CompiledEngine(CPU, tmp_path), 1) == expected
