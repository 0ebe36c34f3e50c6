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


def test_a_pause_begins_when_what_is_being_made_is_made() -> None:
    rounds = 20
    gates, making, about_to = ([threading.Event() for _ in range(rounds)] for _ in range(3))
    events: list[str] = []

    def make(number: int) -> int:
        making[number].set()
        assert gates[number].wait(30)
        events.append(f"made {number}")
        return number

    def pause(number: int) -> None:
        about_to[number].set()
        with ahead.paused():
            events.append(f"paused after {number}")

    with Ahead(make, range(rounds), CPU) as ahead:
        for number in range(rounds):
            assert making[number].wait(30)
            pauses = threading.Thread(target=pause, args=(number,))
            pauses.start()
            assert about_to[number].wait(30)
            gates[number].set()
            pauses.join(30)
            assert ahead.take() == number
    assert all(events.index(f"made {number}") < events.index(f"paused after {number}") for number in range(rounds))


def test_leaving_early_leaves_no_thread() -> None:
    with pytest.raises(RuntimeError, match="enough"), Ahead(lambda number: number, range(10**9), CPU) as ahead:
        ahead.take()
        raise RuntimeError("enough")
    assert "ahead" not in {thread.name for thread in threading.enumerate()}
