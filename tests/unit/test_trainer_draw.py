"""What is drawn is a function of seed, purpose, step and sample, and stays the same for ever."""

import numpy as np
import pytest
import torch
from finetune_trainer.data.draw import Purpose, bucket_order, choose, crop_offsets, draw
from hypothesis import given
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**31 - 1)
STEPS = st.integers(0, 10**6)
INDICES = st.integers(0, 10**4)

GOLDEN_NOISE = [-1.2433468, 0.4593326, -0.6954872, 0.7221618]
GOLDEN_POSTERIOR = [-1.4454957, 0.4631236]
GOLDEN_TIMESTEPS = [586, 773, 453, 38, 902, 418]
GOLDEN_FLIPS = [False, True, True, True, True, False, False, False]
GOLDEN_ORDER = [3, 0, 2, 4, 1, 2, 4, 1, 0, 3]
GOLDEN_CROP = (0.68295142, 0.530489)
GOLDEN_OFFSET_NOISE = [-0.0296068, 0.1780745, -0.3393075, 0.0105612]
GOLDEN_TEMPLATES = [4, 8, 8, 9, 5, 9, 9, 1]
GOLDEN_TAGS = [0, 1, 4, 5, 3, 2]
GOLDEN_DROPPED = [False, False, False, False, False, False, True, True]
GOLDEN_MODULE_SEED = 7804284836924275254
GOLDEN_BUCKETS = [0, 2, 0, 2, 0]


def test_golden_values() -> None:
    """A change here makes every checkpoint and every published seed mean something else."""
    first = draw(0, Purpose.INSTANCE, 0, 0)
    np.testing.assert_allclose(first.noise((4,)), GOLDEN_NOISE, rtol=1e-6)
    np.testing.assert_allclose(first.posterior_noise((2,)), GOLDEN_POSTERIOR, rtol=1e-6)
    assert [draw(0, Purpose.INSTANCE, step, 0).timestep(1000) for step in range(6)] == GOLDEN_TIMESTEPS
    assert [draw(0, Purpose.INSTANCE, 0, index).flip for index in range(8)] == GOLDEN_FLIPS
    assert [choose(0, Purpose.INSTANCE, ordinal, 5) for ordinal in range(10)] == GOLDEN_ORDER
    assert crop_offsets(0, 2, 1) == pytest.approx(GOLDEN_CROP)
    np.testing.assert_allclose(first.offset_noise(4).flatten(), GOLDEN_OFFSET_NOISE, rtol=1e-5)
    assert [draw(0, Purpose.INSTANCE, 0, index).template(10) for index in range(8)] == GOLDEN_TEMPLATES
    assert first.tag_order(6) == GOLDEN_TAGS
    assert [draw(0, Purpose.INSTANCE, 0, index).drops_caption(0.3) for index in range(8)] == GOLDEN_DROPPED
    assert first.module_seed == GOLDEN_MODULE_SEED
    assert bucket_order(0, 1, [3, 0, 2]) == GOLDEN_BUCKETS


@given(SEEDS, STEPS, INDICES)
def test_the_same_arguments_give_the_same_values_in_any_order_of_asking(seed: int, step: int, index: int) -> None:
    one, other = draw(seed, Purpose.INSTANCE, step, index), draw(seed, Purpose.INSTANCE, step, index)
    noise = one.noise((8,))
    assert other.timestep(1000) == one.timestep(1000)
    assert other.flip == one.flip
    assert torch.equal(other.noise((8,)), noise)
    assert not torch.equal(other.posterior_noise((8,)), noise)


@given(SEEDS, STEPS, INDICES)
def test_neighbours_in_every_direction_are_different(seed: int, step: int, index: int) -> None:
    noise = draw(seed, Purpose.INSTANCE, step, index).noise((8,))
    for neighbour in (
        draw(seed + 1, Purpose.INSTANCE, step, index),
        draw(seed, Purpose.CLASS, step, index),
        draw(seed, Purpose.INSTANCE, step + 1, index),
        draw(seed, Purpose.INSTANCE, step, index + 1),
    ):
        assert not torch.equal(neighbour.noise((8,)), noise)


@given(SEEDS, st.integers(1, 40), st.integers(0, 100))
def test_each_pass_shows_each_picture_once(seed: int, count: int, epoch: int) -> None:
    chosen = [choose(seed, Purpose.INSTANCE, epoch * count + i, count) for i in range(count)]
    assert sorted(chosen) == list(range(count))


def test_passes_have_orders_of_their_own() -> None:
    orders = {tuple(choose(3, Purpose.INSTANCE, epoch * 6 + i, 6) for i in range(6)) for epoch in range(20)}
    assert len(orders) > 15


def test_noise_is_standard_normal_and_timesteps_are_uniform() -> None:
    noise = torch.cat([draw(1, Purpose.INSTANCE, step, 0).noise((100,)) for step in range(200)])
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    timesteps = [draw(1, Purpose.INSTANCE, step, 0).timestep(10) for step in range(5000)]
    assert np.bincount(timesteps, minlength=10).min() > 400
    assert 2300 < sum(draw(1, Purpose.INSTANCE, step, 0).flip for step in range(5000)) < 2700
