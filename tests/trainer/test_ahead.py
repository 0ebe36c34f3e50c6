"""Things are made ahead, in order, no more than a few, and by nobody while the model is needed for something else."""

from __future__ import annotations

import threading

import pytest
import torch
from finetune_trainer.data.ahead import DEPTH, Ahead

CPU = torch.device("cpu")


def test_all_come_in_order_and_a_few_ahead() -> None:
    made: list[int] = []
    full = threading.Event()

    def make(number: int) -> int:
        made.append(number)
        if len(made) == DEPTH:
            full.set()
        return number * number

    with Ahead(make, range(3, 20), CPU) as ahead:
        assert full.wait(30), "before anything was asked for"
        assert made == [3, 4]
        taken = []
        for count in range(17):
            taken.append(ahead.take())
            assert len(made) <= count + 1 + DEPTH
    assert taken == [number * number for number in range(3, 20)]
    assert made == list(range(3, 20)), "each once"


def test_what_fails_is_raised_for_its_own_number() -> None:
    def make(number: int) -> int:
        if number == 2:
            raise OSError("a picture is gone")
        return number

    with Ahead(make, range(9), CPU) as ahead:
        assert [ahead.take(), ahead.take()] == [0, 1]
        for _ in range(2):
            with pytest.raises(OSError, match="a picture is gone"):
                ahead.take()


def test_there_is_an_end() -> None:
    with Ahead(lambda number: number, range(1), CPU) as ahead:
        assert ahead.take() == 0
        with pytest.raises(ValueError, match="nothing is left"):
            ahead.take()


def test_nothing_is_made_in_a_pause() -> None:
    making, go_on, paused = threading.Event(), threading.Event(), []

    def make(number: int) -> int:
        making.set()
        assert go_on.wait(30)
        paused.append(pausing.is_set())
        return number

    pausing = threading.Event()
    with Ahead(make, range(50), CPU) as ahead:
        assert making.wait(30)
        go_on.set()
        for number in range(20):
            with ahead.paused():
                pausing.set()
                pausing.clear()
            assert ahead.take() == number
    assert not any(paused)


def test_leaving_early_leaves_no_thread() -> None:
    with pytest.raises(RuntimeError, match="enough"), Ahead(lambda number: number, range(10**9), CPU) as ahead:
        ahead.take()
        raise RuntimeError("enough")
    assert "ahead" not in {thread.name for thread in threading.enumerate()}
