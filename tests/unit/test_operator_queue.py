"""The work queue: once in line, never twice at work, delays and backoffs by a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise

import pytest
from finetune_operator.projections import Key
from finetune_operator.queue import FIRST_BACKOFF, LONGEST_BACKOFF, WorkQueue, spread

A, B = Key("n", "a"), Key("n", "b")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue:
    return WorkQueue(clock, jitter=lambda: 0.0)


def test_a_key_waits_once_and_in_order(queue: WorkQueue, clock: Clock) -> None:
    for key in (A, B, A):
        queue.add(key)
    clock.now += 2
    assert [queue.pop(), queue.pop(), queue.pop()] == [(A, 2.0), (B, 2.0), None]


def test_a_key_is_never_worked_on_twice_at_a_time(queue: WorkQueue) -> None:
    queue.add(A)
    assert queue.pop() is not None
    queue.add(A)
    queue.add(A)
    assert queue.pop() is None
    queue.done(A)
    assert queue.pop() == (A, 0.0)
    queue.done(A)
    assert queue.pop() is None


def test_delays(queue: WorkQueue, clock: Clock) -> None:
    queue.add_after(A, 10)
    queue.add_after(B, 5)
    queue.add_after(A, 20)  # the earlier appointment stays
    assert queue.pop() is None
    clock.now += 5
    assert queue.pop() == (B, 0.0)
    clock.now += 5
    assert queue.pop() == (A, 0.0)
    clock.now += 100
    queue.done(A)
    assert queue.pop() is None, "the later appointment was the same one"


def test_an_earlier_appointment_replaces_a_later_one(queue: WorkQueue, clock: Clock) -> None:
    queue.add_after(A, 20)
    queue.add_after(A, 1)
    clock.now += 1
    assert queue.pop() == (A, 0.0)
    queue.done(A)
    clock.now += 30
    assert queue.pop() is None


def test_backoff_doubles_without_end_and_is_forgiven(queue: WorkQueue) -> None:
    delays = [queue.add_failed(A) for _ in range(40)]
    assert delays[:4] == [FIRST_BACKOFF, 1.0, 2.0, 4.0]
    assert set(delays[10:]) == {LONGEST_BACKOFF}
    assert queue.add_failed(B) == FIRST_BACKOFF
    queue.succeeded(A)
    assert queue.add_failed(A) == FIRST_BACKOFF


def test_jitter_only_lengthens(clock: Clock) -> None:
    assert WorkQueue(clock, jitter=lambda: 1.0).add_failed(A) == FIRST_BACKOFF * 1.5


def test_forgotten_keys_do_not_come_back(queue: WorkQueue, clock: Clock) -> None:
    queue.add(A)
    queue.add_after(B, 1)
    queue.forget(A)
    queue.forget(B)
    clock.now += 10
    assert queue.pop() is None


async def test_waiting_workers_are_woken_one_for_each_key(queue: WorkQueue) -> None:
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    for key in (A, B):
        queue.add(key)
    done, waiting = await asyncio.wait(workers, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 2:
        more, waiting = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        done |= more
    assert {task.result()[0] for task in done} == {A, B}
    (left,) = waiting
    left.cancel()


async def test_a_worker_wakes_by_itself_when_something_is_due() -> None:
    queue = WorkQueue(asyncio.get_running_loop().time)
    queue.add_after(A, 0.01)
    async with asyncio.timeout(5):
        assert (await queue.get())[0] == A


async def test_passes_that_wait_for_nothing_keep_nobody_waiting(queue: WorkQueue) -> None:
    keys = [Key("n", str(number)) for number in range(100)]
    for key in keys:
        queue.add(key)
    done: list[Key] = []

    async def work() -> None:
        while len(done) < len(keys):
            key, _ = await queue.get()
            done.append(key)
            queue.done(key)

    seen: list[int] = []

    async def look_around() -> None:
        while not seen or seen[-1] < len(keys):
            seen.append(len(done))
            await asyncio.sleep(0)

    await asyncio.gather(work(), look_around())
    assert max(later - sooner for sooner, later in pairwise(seen)) <= 1


def test_who_was_looked_at_together_does_not_come_back_together() -> None:
    delays = [spread(Key("team", f"job-{number}"), 900) for number in range(5000)]
    assert min(delays) >= 675
    assert max(delays) <= 900
    a_second = Counter(map(int, delays)).values()
    assert max(a_second) < 100, "5000 over 225 s, by chance about 22 each"
    assert spread(A, 900) == spread(A, 900) != spread(B, 900)
