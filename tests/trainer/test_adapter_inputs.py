"""In half precision the matrices of an adapter read a layer's input as it is, and compute what they would of a float32
copy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.engines import eager
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.engines.halves import half_for
from finetune_trainer.methods import lora
from peft.tuners.lora import LoraLayer
from support.stepping import Stepping, stepping
from support.training import PROMPT, make_run
from torch import Tensor, nn

STEPS = 3


@pytest.fixture(autouse=True)
def rounded_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "half_for", lambda precision, device: half_for(precision, torch.device("cuda")))


def begun(model: Path, pictures: Path, **settings: object) -> Stepping:
    run = make_run(
        "lora",
        method={"lora": {"prompt": PROMPT, "rank": 4, **settings}},
        training={"learningRate": 0.1, "precision": "bf16"},
    )
    return stepping(run, EagerEngine(torch.device("cpu")), model, pictures)


def losses_of(one: Stepping) -> list[float]:
    return [float(one.step(number).loss) for number in range(STEPS)]


@pytest.mark.parametrize("settings", [{}, {"dropout": 0.5}, {"trainTextEncoder": True}])
def test_the_losses_are_the_same_to_the_bit(
    settings: dict[str, object], tiny_sd: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = losses_of(begun(tiny_sd, pictures, **settings))
    monkeypatch.setattr(lora, "_take_inputs_as_they_are", lambda part: None)
    assert found == losses_of(begun(tiny_sd, pictures, **settings))
    assert len(set(found)) == STEPS


@pytest.mark.parametrize(("dora", "expected"), [(False, torch.bfloat16), (True, torch.float32)])
def test_nothing_is_copied_but_for_magnitudes(dora: bool, expected: torch.dtype, tiny_sd: Path, pictures: Path) -> None:
    one = begun(tiny_sd, pictures, useDora=dora)
    read: set[torch.dtype] = set()

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.add(inputs[0].dtype)

    # the second of an attention's layers reads what another layer gave
    layer = next(
        layer
        for name, layer in one.family.parts["unet"].named_modules()
        if isinstance(layer, LoraLayer) and name.endswith("to_out.0")
    )
    layer.lora_A["default"].register_forward_pre_hook(look)
    one.step(0)
    assert read == {expected}
