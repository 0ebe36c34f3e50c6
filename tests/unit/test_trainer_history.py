"""What becomes of each step is told in order, some steps late, and a checkpoint has all of it."""

from __future__ import annotations

import pytest
from finetune_trainer.engines import NonFiniteLoss
from finetune_trainer.training.history import LOSS_WINDOW, History, Past
from finetune_trainer.training.readings import Figures
from finetune_trainer.training.skips import Skips
from support.training import Memory


class Coming:
    """A reading whose figures are there at once."""

    def __init__(self, step: int, skipped: bool = False) -> None:
        self.figures = Figures(float("nan") if skipped else step / 8, 1.0, skipped, step / 16, 0.5, 0.125)
        self.asked = 0

    def get(self) -> Figures:
        self.asked += 1
        return self.figures


def history_of(late: int, listener: Memory, total: int = 100) -> History:
    return History(listener, Skips("fp32", total), total, 4, late)


@pytest.mark.parametrize("late", [0, 1, 4, 9])
def test_no_reading_is_asked_before_its_time(late: int) -> None:
    listener = Memory()
    history = history_of(late, listener)
    readings = [Coming(step) for step in range(1, 8)]
    for given, reading in enumerate(readings, 1):
        history.add(reading)
        assert history.step == given
        known = max(0, given - late)
        assert [one.asked for one in readings] == [1] * known + [0] * (7 - known)
        assert [report.step for report in listener.steps] == list(range(1, known + 1))
        assert history.past.losses == tuple(step / 8 for step in range(1, known + 1))
    history.settle()
    assert [report.step for report in listener.steps] == list(range(1, 8))
    last = listener.steps[-1]
    assert (last.total_steps, last.images, last.learning_rate, last.seconds, last.data_seconds) == (
        100,
        4,
        7 / 16,
        0.5,
        0.125,
    )
    assert last.loss == history.loss == sum(range(1, 8)) / 7 / 8


def test_a_checkpoint_has_what_is_on_its_way_and_nothing_that_comes_later() -> None:
    listener = Memory()
    history = history_of(3, listener)
    for step in range(1, 6):
        history.add(Coming(step, skipped=step in (2, 4, 5)))
    frozen = history.frozen()
    told = len(listener.steps)
    history.add(Coming(6))
    past = frozen()
    assert len(listener.steps) == told + 1, "the writer tells nobody"
    assert len(past.losses) == len(past.learning_rates) == 5
    assert past.learning_rates == tuple(step / 16 for step in range(1, 6))
    assert (past.skipped, past.skipped_in_a_row) == (3, 2)
    assert [report.step for report in listener.steps if report.skipped] == [2]
    assert (history.past.skipped, history.past.skipped_in_a_row) == (1, 0), "that much is known to the loop"


def test_it_goes_on_where_another_ended() -> None:
    listener, past = Memory(), Past((0.5, float("nan"), float("nan")), (0.1, 0.2, 0.3), 2, 2)
    history = history_of(1, listener)
    history.load(past)
    assert history.step == 3
    assert history.loss == 0.5, "steps that came to nothing do not count"
    history.add(Coming(4, skipped=True))
    with pytest.raises(NonFiniteLoss, match=r"^steps 2 to 4 of 100"):
        history.add(Coming(5))


def test_the_loss_is_the_mean_of_the_last_ones() -> None:
    history = history_of(0, Memory(), 200)
    for step in range(1, 101):
        history.add(Coming(step))
    assert history.loss == pytest.approx(sum(range(101 - LOSS_WINDOW, 101)) / LOSS_WINDOW / 8)
