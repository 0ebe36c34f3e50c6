"""Who is whom in a group, and what is refused."""

import subprocess
import sys

import pytest
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.group.place import Place, place_of
from finetune_trainer.settings import Settings
from support.observations import snapshot, spec


def place(engine: dict[str, int], **settings: object) -> Place | None:
    return place_of(snapshot(spec(engine=engine)).run, "digest", Settings.model_validate(settings))


def test_one_process_has_no_group() -> None:
    assert place({}) is None
    assert place({}, node=0, group_host="x") is None


def test_processes_of_one_machine_need_to_be_told_nothing() -> None:
    found = place({"processesPerNode": 2})
    assert found is not None
    seats = found.seats("generation", 1234, store_fd=7)
    assert [(seat.rank, seat.local_rank, seat.size, seat.leads) for seat in seats] == [
        (0, 0, 2, True),
        (1, 1, 2, False),
    ]
    assert [seat.store_fd for seat in seats] == [7, None], "rank 0 alone serves"
    assert {(seat.store_host, seat.store_port) for seat in seats} == {("127.0.0.1", 1234)}


def test_ranks_are_counted_over_all_pods() -> None:
    found = place({"nodes": 3, "processesPerNode": 2}, node=1, group_host="two-0.two.art.svc")
    assert found is not None
    seats = found.seats("generation", 1234)
    assert [(seat.rank, seat.local_rank, seat.size) for seat in seats] == [(2, 0, 6), (3, 1, 6)]
    assert {seat.store_host for seat in seats} == {"two-0.two.art.svc"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"spec\.engine\.nodes is 2, but neither FINETUNE_NODE nor FINETUNE_GROUP_HOST says"),
        ({"node": 0}, r"set nodes to 1"),
        ({"node": 2, "group_host": "x"}, r"FINETUNE_NODE is 2, but spec\.engine\.nodes is 2"),
    ],
)
def test_a_machine_that_does_not_know_its_place_is_told_what_to_do(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        place({"nodes": 2}, **settings)


def test_a_training_process_ends_with_its_supervisor_whatever_it_waits_for() -> None:
    code = "from finetune_trainer.group import seat; import time; seat.end_with_supervisor(); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 76
