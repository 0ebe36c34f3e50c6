"""A picture is that of its own prompt and noise: which others are drawn with it changes nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_trainer.families import Family, load_family
from support.tiny_sdxl import build_tiny_sdxl
from torch import Tensor

SHORT, OTHER, LONG = "a dog", "b cat", "abcdefghij" * 5
"""Of one window, of one, and of three."""
NOISE = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["sd", "sdxl"])
def family(request: pytest.FixtureRequest, tiny_sd: Path, tmp_path: Path) -> Family:
    folder = tiny_sd if request.param == "sd" else build_tiny_sdxl(tmp_path)
    return load_family(folder, torch.device("cpu"))


def drawn(family: Family, rows: list[int], prompts: list[str], negatives: list[str] | None = None) -> list[np.ndarray]:
    pictures = family.draw(prompts, negatives or [""] * len(rows), NOISE[rows], 2, 4.0)
    return [np.asarray(picture).astype(int) for picture in pictures]


def test_a_longer_prompt_beside_it_changes_nothing(family: Family) -> None:
    (alone,) = drawn(family, [0], [SHORT])
    (long_alone,) = drawn(family, [1], [LONG])
    short, long = drawn(family, [0, 1], [SHORT, LONG])
    np.testing.assert_array_equal(short, alone)
    np.testing.assert_array_equal(long, long_alone)
    long, short = drawn(family, [1, 0], [LONG, SHORT])
    np.testing.assert_array_equal(short, alone)
    np.testing.assert_array_equal(long, long_alone)


def test_a_longer_negative_prompt_beside_it_changes_nothing(family: Family) -> None:
    (alone,) = drawn(family, [0], [SHORT])
    short, other = drawn(family, [0, 1], [SHORT, SHORT], ["", LONG])
    np.testing.assert_array_equal(short, alone)
    (other_alone,) = drawn(family, [1], [SHORT], [LONG])
    np.testing.assert_array_equal(other, other_alone)


def test_rows_are_drawn_together_and_stay_in_order(family: Family) -> None:
    one, long, two = drawn(family, [0, 1, 2], [SHORT, LONG, OTHER])
    first, second = drawn(family, [0, 2], [SHORT, OTHER])
    np.testing.assert_array_equal(one, first)
    np.testing.assert_array_equal(two, second)
    # batches of one and of two are rounded otherwise: a level of 255 at most
    np.testing.assert_allclose(one, drawn(family, [0], [SHORT])[0], atol=1)
    np.testing.assert_allclose(two, drawn(family, [2], [OTHER])[0], atol=1)
    np.testing.assert_array_equal(long, drawn(family, [1], [LONG])[0])
    assert (one != two).any()


def test_rows_of_equal_length_are_denoised_at_once(family: Family) -> None:
    sizes: list[int] = []
    family.parts["unet"].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    drawn(family, [0, 1, 2], [SHORT, LONG, OTHER])
    # twice: with the prompt and without
    assert sizes == [4, 4, 2, 2]


def test_decoding_takes_the_memory_of_one_picture(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    decode = family.parts["vae"].decode

    def watched(latents: Tensor, **more: object) -> object:
        shapes.append(tuple(latents.shape))
        return decode(latents, **more)

    monkeypatch.setattr(family.parts["vae"], "decode", watched)
    drawn(family, [0, 1, 2], [SHORT, OTHER, SHORT])
    assert shapes == [(1, 4, 8, 8)] * 3
