"""How long a training is, and its learning rate, as functions of the step."""

import pytest
from finetune_api.training import SchedulerSpec, TrainingSpec
from finetune_trainer.training.loss import sample_losses, sample_weights
from finetune_trainer.training.schedule import learning_rate_factor, total_steps
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("name", "warmup", "expected"),
    [
        ("Constant", 0, [1, 1, 1, 1]),
        ("Constant", 1, [0.5, 1, 1, 1]),
        ("Constant", 3, [0.25, 0.5, 0.75, 1]),
        ("Linear", 0, [1, 0.75, 0.5, 0.25]),
        ("Linear", 2, [1 / 3, 2 / 3, 1, 0.5]),
        ("Cosine", 0, [1, 0.853553, 0.5, 0.146447]),
        ("Cosine", 2, [1 / 3, 2 / 3, 1, 0.5]),
    ],
)
def test_learning_rate_of_four_steps(name: str, warmup: int, expected: list[float]) -> None:
    spec = SchedulerSpec.model_validate({"name": name, "warmupSteps": warmup})
    assert [learning_rate_factor(spec, step, 4) for step in range(4)] == pytest.approx(expected, abs=1e-6)


@given(st.sampled_from(["Constant", "Linear", "Cosine"]), st.integers(1, 500), st.data())
def test_the_rate_is_never_zero_nor_above_its_setting(name: str, total: int, data: st.DataObject) -> None:
    warmup, step = data.draw(st.integers(0, total - 1)), data.draw(st.integers(0, total - 1))
    spec = SchedulerSpec.model_validate({"name": name, "warmupSteps": warmup})
    assert 0 < learning_rate_factor(spec, step, total) <= 1


@pytest.mark.parametrize(
    ("spec", "items", "expected"),
    [
        ({"steps": 7}, 5, 7),
        ({"epochs": 1}, 5, 5),
        ({"epochs": 3, "batchSize": 2}, 5, 8),
        ({"epochs": 3, "batchSize": 2, "gradientAccumulationSteps": 4}, 5, 2),
        ({"epochs": 1, "batchSize": 64}, 5, 1),
        ({"epochs": 2}, 5 * 4, 40),
    ],
)
def test_total_steps(spec: dict[str, int], items: int, expected: int) -> None:
    assert total_steps(TrainingSpec.model_validate(spec), items) == expected


def test_a_training_without_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training\.steps or training\.epochs"):
        total_steps(TrainingSpec(), 5)


@given(st.integers(1, 5), st.integers(1, 6), st.floats(0.1, 10))
def test_weights_of_a_step_add_up_to_one_plus_lambda(batch: int, accumulation: int, weight: float) -> None:
    micro_batch = sample_weights([1.0] * batch + [weight] * batch, batch * accumulation)
    assert float(micro_batch.sum()) * accumulation == pytest.approx(1 + weight, rel=1e-5)


def test_losses_are_means_over_each_sample_in_float32() -> None:
    import torch

    prediction = torch.tensor([[[1.0, 3.0]], [[0.0, 0.0]]], dtype=torch.bfloat16)
    losses = sample_losses(prediction, torch.zeros(2, 1, 2))
    assert losses.dtype == torch.float32
    assert losses.tolist() == [5.0, 0.0]
