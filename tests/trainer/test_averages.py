"""Averaged weights are Diffusers' own, come and go to the bit, and are what a training ends with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.training_utils import EMAModel
from finetune_api.engine import EngineSpec
from finetune_trainer.engines import Engine, make_engine
from finetune_trainer.engines.average import decay_of
from finetune_trainer.methods import ParameterGroup
from support.toys import Regression, batch_of
from support.training import make_run, train_once


def prepared(module: Regression, ema: bool = True) -> Engine:
    engine = make_engine(EngineSpec(), torch.device("cpu"))
    spec = make_run(training={"learningRate": 0.01, "ema": ema}).training
    engine.prepare(module, [ParameterGroup("all", dict(module.named_parameters()))], spec, [])
    return engine


def test_averages_are_those_of_diffusers() -> None:
    module = Regression()
    engine = prepared(module)
    reference = EMAModel(module.parameters(), decay=0.9999)
    for step in range(12):
        engine.step([batch_of(number=step)], 1.0)
        reference.step(module.parameters())
        assert decay_of(torch.tensor(step + 1)) == reference.cur_decay_value
    state = engine.state().average
    assert state is not None
    assert state.updates == 12
    for average, theirs, live in zip(state.weights.values(), reference.shadow_params, module.parameters(), strict=True):
        assert torch.equal(average, theirs)
        assert not torch.equal(average, live)
    assert decay_of(torch.tensor(10**6)) == 0.9999


def test_averages_come_and_go_to_the_bit() -> None:
    module = Regression()
    engine = prepared(module)
    engine.step([batch_of()], 1.0)
    engine.step([batch_of()], 1.0)
    before = engine.state()
    assert before.average is not None
    with pytest.raises(KeyError), engine.averaged():
        assert all(torch.equal(value, before.average.weights[name]) for name, value in engine.weights().items())
        raise KeyError("a duty that fails leaves the weights as they were")
    after = engine.state()
    assert after.average is not None
    for name, value in before.weights.items():
        assert torch.equal(after.weights[name], value)
        assert torch.equal(after.average.weights[name], before.average.weights[name])


def test_averages_keep_to_what_their_weights_keep_to() -> None:
    """The mean of vectors of one length is shorter than each."""
    module = Regression()

    def unit(rows: torch.Tensor) -> None:
        rows.div_(rows.norm(dim=1, keepdim=True))

    whole = dict(module.named_parameters())
    held = {"second": whole.pop("second")}
    groups = [ParameterGroup("held", held, constraint=unit), ParameterGroup("others", whole)]
    engine = make_engine(EngineSpec(), torch.device("cpu"))
    spec = make_run(training={"learningRate": 0.1, "ema": True}).training
    engine.prepare(module, groups, spec, [])
    free = dict(module.named_parameters())["first"]
    seen = []
    for step in range(8):
        engine.step([batch_of(number=step)], 1.0)
        seen.append(free.detach().clone())
    average = engine.state().average
    assert average is not None
    torch.testing.assert_close(average.weights["second"].norm(dim=1), torch.ones(16))
    assert not torch.equal(average.weights["second"], engine.weights()["second"])
    expected = torch.zeros_like(free)
    for update, value in enumerate(seen, 1):
        decay = decay_of(torch.tensor(update))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.weights["first"], expected)
    with engine.averaged():
        torch.testing.assert_close(module.second.norm(dim=1), torch.ones(16))


def test_a_state_without_averages_is_none_for_a_training_with_them() -> None:
    with pytest.raises(ValueError, match=r"another training\.ema"):
        prepared(Regression()).load(prepared(Regression(), ema=False).state())


@pytest.mark.parametrize("technique", ["lora", "dreamBooth"])
def test_a_training_ends_with_the_averages(technique: str, tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    plain, averaged = make_run(technique), make_run(technique, training={"ema": True})
    live, one = train_once(plain, tiny_sd, pictures, tmp_path / "plain")
    family, other = train_once(averaged, tiny_sd, pictures, tmp_path / "averaged")
    assert one.losses == other.losses, "the training itself knows nothing of them"
    last = dict(live.parts["unet"].named_parameters())
    ended = dict(family.parts["unet"].named_parameters())
    changed = [name for name in last if not torch.equal(last[name], ended[name])]
    assert changed
    assert all("lora_B" in name or "lora_A" in name for name in changed) or technique == "dreamBooth"
