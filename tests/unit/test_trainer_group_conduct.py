"""What becomes of a group, as a table: two pods of two processes, ranks 0 and 1 in the first."""

import pytest
from finetune_trainer.group.conduct import (
    SETTLING_SECONDS,
    Conduct,
    Event,
    NodeLost,
    RankEnded,
    RankFrozen,
    StopAsked,
)

STOPPED = [RankEnded(rank, 75) for rank in range(4)]


def conduct(*events: Event) -> Conduct:
    made = Conduct(nodes=2, per_node=2)
    for event in events:
        made.hear(event, now=100.0)
    return made


@pytest.mark.parametrize(
    ("events", "codes", "message"),
    [
        ([RankEnded(0, 0)], (0, 0), ""),
        ([RankEnded(3, 65, "a.png is no picture")], (65, 65), "a.png is no picture"),
        ([RankEnded(0, 78, "no bucket")], (78, 76), "no bucket"),
        ([RankEnded(2, 137, "killed by SIGKILL")], (76, 137), "process 2 of the group: killed by SIGKILL"),
        ([RankEnded(1, 3)], (3, 76), "process 1 of the group: ended with exit code 3"),
        ([RankFrozen(3)], (76, 76), "process 3 is frozen"),
        ([NodeLost(1, "no heartbeat for 30 s")], (76, 76), "node 1 of the group is lost (no heartbeat for 30 s)"),
        # what follows from a loss is not blamed on those it happens to
        ([RankEnded(0, 1), RankEnded(2, 137, "killed by SIGKILL")], (76, 137), "process 2"),
        ([RankEnded(0, 1), RankEnded(3, 65, "bad")], (65, 65), "bad"),
        ([RankEnded(0, 76), NodeLost(1, "its process ended")], (76, 76), "node 1"),
        # the first word counts
        ([RankEnded(3, 65, "bad"), RankEnded(0, 1), NodeLost(1, "")], (65, 65), "bad"),
        ([RankEnded(0, 0), NodeLost(1, "")], (0, 0), ""),
        # asked to stop: everybody has the time it takes
        (STOPPED, (75, 75), "stopped with its group"),
        ([StopAsked(), *STOPPED[:3], RankEnded(3, 143)], (75, 75), "stopped with its group"),
        ([StopAsked(), *STOPPED[:3], RankEnded(3, 1)], (75, 76), "stopped with its group"),
        ([*STOPPED[2:], NodeLost(1, "its process ended"), *STOPPED[:2]], (75, 75), "stopped with its group"),
        ([StopAsked(), *STOPPED[:2], NodeLost(1, "no heartbeat")], (75, 76), "stopped with its group"),
        ([RankEnded(2, 76), *STOPPED], (75, 76), "stopped with its group"),
    ],
)
def test_endings(events: list[Event], codes: tuple[int, int], message: str) -> None:
    ending = conduct(*events).ending
    assert ending is not None
    assert ending.codes == codes
    assert ending.message.startswith(message)
    assert bool(ending.message) == bool(message)


@pytest.mark.parametrize("events", [STOPPED[:1], [StopAsked(), *STOPPED[1:]], [StopAsked(), RankEnded(2, 137)]])
def test_a_stop_waits_for_all_and_kills_nobody(events: list[Event]) -> None:
    made = conduct(*events)
    assert made.stopping
    assert made.ending is None
    assert made.settles_at is None


@pytest.mark.parametrize("code", [1, 76])
def test_an_error_waits_for_its_reason_and_then_stands_for_itself(code: int) -> None:
    made = conduct(RankEnded(2, code, "out of memory"))
    assert made.ending is None
    assert made.settles_at == 100.0 + SETTLING_SECONDS
    made.settle()
    assert made.ending is not None
    assert made.ending.codes == (76, code)
    assert "out of memory" in made.ending.message


def test_a_users_mistake_is_told_by_the_first_pod_and_by_the_one_that_found_it() -> None:
    made = Conduct(nodes=4, per_node=1)
    made.hear(RankEnded(2, 65, "a.png is no picture"), now=0)
    assert made.ending is not None
    assert made.ending.codes == (65, 76, 65, 76)


def test_one_mishap_counts_once() -> None:
    """All four diverge in the same step; the Job counts every pod that ends with 1."""
    made = conduct(*(RankEnded(rank, 1, "the loss is nan") for rank in (1, 0, 3, 2)))
    made.settle()
    assert made.ending is not None
    assert sorted(made.ending.codes) == [1, 76]
