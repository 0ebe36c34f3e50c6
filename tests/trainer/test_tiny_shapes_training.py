"""The script's training: a stage that was stopped goes on exactly where it was, and the VAE's latents are normal."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

# The script that makes the model is no part of the installed package.
sys.path.append(str(Path(__file__).parents[2] / "trainer_image"))

from tiny_shapes import drawing, loop, vae


class Stopped(Exception):
    """Stands for a process that is killed right after a checkpoint."""


@pytest.fixture(autouse=True)
def small_and_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "ASSEMBLIES", 16)
    monkeypatch.setattr(vae, "SHAPES", 8)
    monkeypatch.setattr(vae, "BATCH", 2)
    monkeypatch.setattr(vae, "STEPS", 4)
    monkeypatch.setattr(vae, "draw_faces", lambda count, seed: drawing.draw_assemblies(2, seed))
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)


def test_a_stage_that_was_stopped_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("whole", "broken"):
        (tmp_path / folder).mkdir()
    whole = vae.train_vae(tmp_path / "whole", seed=0)

    def stop(*_: object) -> float:
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(vae, "psnr", stop)
        vae.train_vae(tmp_path / "broken", seed=0)
    resumed = vae.train_vae(tmp_path / "broken", seed=0)

    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_normalised_latents_show_the_same_pictures() -> None:
    torch.manual_seed(0)
    model = vae.build_vae().eval()
    pictures = drawing.draw_assemblies(8, seed=0)
    before = vae.round_trip(model, pictures)
    vae.normalise_latents(model, pictures)
    means, _ = vae.encode(model, pictures)
    torch.testing.assert_close(means.mean(dim=(0, 2, 3)), torch.zeros(8), rtol=0, atol=0.05)
    torch.testing.assert_close(means.std(dim=(0, 2, 3)), torch.ones(8), rtol=0, atol=0.05)
    difference = np.abs(vae.round_trip(model, pictures).astype(int) - before.astype(int))
    assert difference.max() <= 2


def test_the_learning_rate_warms_up_stays_and_ends_at_zero() -> None:
    rates = [loop.learning_rate(step, total=1000, peak=1.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[100] == rates[599] == 1.0
    assert rates[800] == pytest.approx(0.5)
    assert rates[999] == pytest.approx(1 / 400)
