"""Activations that are computed twice save memory and change nothing, in every part that is trained through."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from finetune_api import TrainingRun
from finetune_trainer.families import Family
from finetune_trainer.training.duties import Duty
from support.training import PROMPT, make_run, train_once
from torch import nn

STEPS = 3
METHODS: dict[str, dict[str, object]] = {
    "lora": {"lora": {"prompt": PROMPT, "rank": 4, "dropout": 0.2, "trainTextEncoder": True}},
    "dreamBooth": {"dreamBooth": {"prompt": PROMPT, "trainTextEncoder": True}},
    "textualInversion": {"textualInversion": {"tokens": [{"placeholder": "<dog>", "initializer": "d"}]}},
}


def run_of(technique: str, twice: bool) -> TrainingRun:
    training = {"steps": STEPS, "learningRate": 1e-3, "gradientCheckpointing": twice}
    run = make_run("lora", training=training)
    spec = run.model_dump(mode="json", by_alias=True, exclude_none=True) | {"method": METHODS[technique]}
    return TrainingRun.model_validate(spec)


@pytest.mark.parametrize("technique", METHODS)
def test_losses_stay_and_blocks_run_twice(technique: str, tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    losses, calls = [], []
    for twice in (False, True):
        count: Counter[str] = Counter()

        def watch(family: Family, count: Counter[str] = count) -> list[Duty]:
            def on(name: str, module: nn.Module) -> None:
                module.register_forward_pre_hook(lambda *_: count.update([name]))

            on("unet", family.parts["unet"].up_blocks[0].resnets[0])
            on("text_encoder", family.parts["text_encoder"].text_model.encoder.layers[0].mlp)
            return []

        _, outcome = train_once(run_of(technique, twice), tiny_sd, pictures, tmp_path / str(twice), duties_of=watch)
        losses.append(outcome.losses)
        calls.append(count)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert {name: calls[1][name] - calls[0][name] for name in calls[0]} == {"unet": STEPS, "text_encoder": STEPS}
