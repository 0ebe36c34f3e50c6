"""One thread does what the training must not wait for: in order, heard in the caller's thread, errors included."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest
from finetune_trainer.background import Background
from finetune_trainer.errors import RunError


def into(heard: list[object]) -> Callable[[Future[object]], None]:
    return lambda future: heard.append((future.result(), threading.current_thread().name))


def test_work_is_done_in_order_by_one_thread_and_heard_by_the_caller() -> None:
    gate, began = threading.Event(), threading.Event()
    heard: list[object] = []
    workers: list[str] = []

    def work(number: int) -> int:
        workers.append(threading.current_thread().name)
        began.set()
        assert gate.wait(30)
        return number

    with Background() as background:
        for number in range(3):
            background.submit(lambda number=number: work(number), into(heard))
        assert began.wait(30), "it works while the caller goes on"
        background.hear()
        assert heard == [], "hearing never waits"
        gate.set()
        background.finish()
        mine = threading.current_thread().name
        assert heard == [(0, mine), (1, mine), (2, mine)]
    assert workers == ["background"] * 3
    assert mine != "background"


def test_what_fails_is_raised_where_it_is_heard_and_the_next_goes_on() -> None:
    heard: list[object] = []

    def fail() -> None:
        raise RunError("no answer")

    with Background() as background:
        background.submit(fail, lambda future: future.result())
        background.submit(lambda: 7, into(heard))
        with pytest.raises(RunError, match="no answer"):
            background.finish()
        background.finish()
    assert heard[0][0] == 7


class PowerCut(BaseException):
    """Nothing in the trainer catches it."""


@pytest.mark.parametrize("end", [None, ValueError, PowerCut], ids=str)
def test_however_it_ends_what_was_given_is_done_and_heard(end: type[BaseException] | None) -> None:
    heard: list[object] = []

    def fail() -> None:
        raise RunError("and this besides")

    def run() -> None:
        with Background() as background:
            background.submit(lambda: 1, into(heard))
            if end is not None:
                background.submit(fail, lambda future: future.result())
            background.submit(lambda: 2, into(heard))
            if end is not None:
                raise end

    if end is None:
        run()
    else:
        with pytest.raises(end):
            run()
    assert [one[0] for one in heard] == [1, 2]


def test_a_failure_that_is_heard_at_the_very_end_is_raised() -> None:
    def fail() -> None:
        raise RunError("no answer")

    with pytest.raises(RunError, match="no answer"), Background() as background:
        background.submit(fail, lambda future: future.result())


def test_an_impatient_person_is_not_kept_waiting() -> None:
    gate = threading.Event()
    with pytest.raises(KeyboardInterrupt), Background() as background:
        background.submit(lambda: gate.wait(30), lambda future: None)
        raise KeyboardInterrupt
    gate.set()
