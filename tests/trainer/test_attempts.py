"""What attempts say of themselves, what those after them make of it, and what they may remove."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from finetune_api import ExitCode, Progress
from finetune_trainer.checkpoints.time_left import Rate, is_time_for
from finetune_trainer.errors import Interrupted, RunError
from finetune_trainer.publish.attempts import AttemptRecord, Found, for_manifest, read_attempts, record_key
from finetune_trainer.publish.file_store import FileStore
from finetune_trainer.publish.journal import Journal
from finetune_trainer.publish.leftovers import SILENCE_SECONDS, Claim, Fate, fate_of, leftovers, owner_of
from finetune_trainer.publish.store import StoredObject, Unfinished
from finetune_trainer.signals import Stop
from finetune_trainer.telemetry.board import Board
from finetune_trainer.telemetry.listener import StepReport

RUN = "run-1"
INF = float("inf")


def record(attempt: str, number: int = 1, **values: object) -> AttemptRecord:
    return AttemptRecord(run_uid=RUN, attempt=attempt, number=number, started=f"2030-01-01T00:0{number}:00Z", **values)


# ---- is there time for one more checkpoint ----


@pytest.mark.parametrize(
    ("size", "rate", "left", "expected"),
    [
        (100, Rate(100, 10.0), INF, True),  # nobody asked to stop
        (100, Rate(100, 10.0), 15.0, True),  # half as much again as it took the last time
        (100, Rate(100, 10.0), 14.9, False),
        (300, Rate(100, 10.0), 44.0, False),  # three times as large
        (300, Rate(100, 10.0), 45.0, True),
        (100, Rate(100, 10.0), 0.0, False),
        (100, None, 1.0, True),  # never measured: worth a try, for half an upload harms nobody
        (100, Rate(0, 10.0), 1.0, True),
        (100, None, 0.0, False),
        (0, Rate(100, 10.0), 0.0, True),
    ],
)
def test_one_more_checkpoint_only_where_it_fits(size: int, rate: Rate | None, left: float, expected: bool) -> None:
    assert is_time_for(size, rate, left) is expected


@pytest.mark.parametrize(
    ("grace", "passed", "left"),
    [(120, 0, 115), (120, 100, 15), (120, 117, 0), (10, 0, 7.5), (None, 1000, INF)],
)
def test_of_the_grace_a_reserve_is_kept_for_the_last_words(grace: float | None, passed: float, left: float) -> None:
    now = [1000.0]
    stop = Stop(grace, lambda: now[0])
    assert (stop(), stop.seconds_left()) == (False, INF)
    stop.ask()
    now[0] += passed
    stop.ask()  # a second signal gives no second grace
    assert (stop(), stop.seconds_left()) == (True, left)


# ---- what is known of earlier attempts ----


def test_lost_steps_are_exact_where_an_attempt_could_say_where_it_was() -> None:
    attempts = for_manifest(
        [
            record("a", 1, step=57, ended="then", exit_code=75),
            record("b", 2),  # killed while fetching: nothing was trained, nothing lost
            record("c", 3, step=90, resumed_from_step=50, checkpoint_step=80),  # killed; it said 90 a minute ago
            record("d", 4, step=80, resumed_from_step=80, ended="then", exit_code=1),
            record("e", 5, step=200, resumed_from_step=80),
        ]
    )
    assert [(a.id, a.lost_steps, a.at_least) for a in attempts] == [
        ("a", 7, None),
        ("b", None, None),
        ("c", 10, True),
        ("d", 0, None),
        ("e", None, None),
    ]


def test_an_attempt_that_had_to_begin_anew_cost_the_one_before_all_its_steps() -> None:
    first, _ = for_manifest([record("a", 1, step=9, ended="then"), record("b", 2, step=3)])
    assert first.lost_steps == 9


def test_the_newest_twenty_records_of_this_run_are_read(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    for number in range(1, 24):
        store.put_bytes(record_key(f"pod-{number}"), record(f"pod-{number}", number).to_bytes())
        os.utime(tmp_path / record_key(f"pod-{number}"), (number, number))
    theirs = record("theirs", 30).model_copy(update={"run_uid": "run-2"})
    store.put_bytes(record_key("theirs"), theirs.to_bytes())
    store.put_bytes(record_key("another-name"), record("somebody", 31).to_bytes())
    store.put_bytes(record_key("broken"), b"{")
    store.put_bytes("attempts/pod-1/lora/model_index.json", b"{}")
    found = [one.record.attempt for one in read_attempts(store, RUN)]
    assert found == [f"pod-{number}" for number in range(7, 24)]


def test_a_journal_tells_of_those_before_and_keeps_its_own_record(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    said: list[str] = []
    with pytest.raises(Interrupted), Journal(store, RUN, "pod-1", "my-dog-1", said.append) as first:
        first.stage("Training")
        first.begins(100, None)
        first.step(StepReport(57, 100, 0.5, 1e-4, 1.0, 1, 0.1))
        first.checkpoint(50, 1.0)
        raise Interrupted("stopped at step 57 of 100")
    assert said == []
    Journal(store, RUN, "pod-2", None, said.append)  # killed at once
    with Journal(store, RUN, "pod-3", None, said.append) as third:
        third.begins(100, 50)
        assert str(third.summary()) == "3; 7 steps were done again"
    assert said == [
        "attempt 1 (pod-1) ended with 75 at step 57: stopped at step 57 of 100",
        "attempt 1 (pod-1) ended with 75 at step 57: stopped at step 57 of 100",
        "attempt 2 (pod-2) was killed, or still works; last heard of at Starting",
        "attempts so far: 3; 7 steps were done again",
    ]
    stored = json.loads(store.get_bytes("attempts/pod-1.json") or b"")
    assert {key: stored[key] for key in ("runUid", "podName", "stage", "step", "checkpointStep", "exitCode")} == {
        "runUid": RUN,
        "podName": "my-dog-1",
        "stage": "Training",
        "step": 57,
        "checkpointStep": 50,
        "exitCode": 75,
    }
    assert "resumedFromStep" not in stored
    assert json.loads(store.get_bytes("attempts/pod-3.json") or b"")["exitCode"] == 0
    assert "ended" not in json.loads(store.get_bytes("attempts/pod-2.json") or b"")


def test_a_store_that_fails_costs_the_record_and_not_the_run(tmp_path: Path) -> None:
    class Failing(FileStore):
        broken = False

        def put_bytes(self, key: str, data: bytes, if_none_match: bool = False) -> bool:
            if self.broken:
                raise RunError("no answer")
            return super().put_bytes(key, data, if_none_match)

    store = Failing(tmp_path)
    with Journal(store, RUN, "pod-1", None, lambda text: None) as journal:
        store.broken = True
        journal.checkpoint(5, 1.0)
    assert store.get_bytes("attempts/pod-1.json") is not None


def test_a_living_attempt_writes_its_record_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while nothing happens that is worth a line, as in an hour of drawing class pictures."""
    monkeypatch.setattr("finetune_trainer.publish.journal.BEAT_SECONDS", 0.001)
    third = threading.Event()

    class Counting(FileStore):
        writes = 0

        def put_bytes(self, key: str, data: bytes, if_none_match: bool = False) -> bool:
            self.writes += 1
            if self.writes == 3:
                third.set()
            return super().put_bytes(key, data, if_none_match)

    with Journal(Counting(tmp_path), RUN, "pod-1", None, lambda text: None):
        assert third.wait(60)


@pytest.mark.parametrize("resumed_from", [None, 0, 40])
def test_the_first_answer_in_training_says_where_the_attempt_went_on(resumed_from: int | None) -> None:
    board = Board(RUN, "pod-1")
    board.begins(100, resumed_from)
    board.stage("Training")
    progress = Progress.model_validate_json(board.progress().model_dump_json(by_alias=True, exclude_none=True))
    assert (progress.step, progress.total_steps) == (resumed_from or 0, 100)
    assert (progress.resumed_from_step, progress.checkpoint_step) == (resumed_from, resumed_from)


# ---- what may be removed ----


@pytest.mark.parametrize(
    ("ended", "age", "fate"),
    [
        ("then", 0, Fate.ENDED),
        ("then", 10 * SILENCE_SECONDS, Fate.ENDED),
        (None, 0, Fate.MAY_LIVE),
        (None, SILENCE_SECONDS, Fate.MAY_LIVE),
        (None, SILENCE_SECONDS + 1, Fate.SILENT),
    ],
)
def test_only_who_said_so_has_ended(ended: str | None, age: float, fate: Fate) -> None:
    assert fate_of(Found(record("a", ended=ended), 1e9 - age), 1e9) is fate


@pytest.mark.parametrize(
    ("key", "owner"),
    [
        ("attempts/pod-1/lora/weights.safetensors", "pod-1"),
        ("attempts/pod-1.json", "pod-1"),
        ("attempts/notes.txt", None),
        ("checkpoints/run-1/00000020-pod-1/manifest.json", "pod-1"),
        ("checkpoints/run-2/00000020-pod-1/manifest.json", None),
        ("checkpoints/run-1/strange", None),
        ("exports/run-1/00000020-pod-1/lora/weights.safetensors", "pod-1"),
        ("exports/run-2/00000020-pod-1/export.json", None),
        ("manifest.json", None),
        ("other/pod-1/file", None),
    ],
)
def test_whose_a_key_is(key: str, owner: str | None) -> None:
    assert owner_of(key, RUN) == owner


HALF, WHOLE = "checkpoints/run-1/00000020-{}/weights", "checkpoints/run-1/00000010-{}/{}"


def everything_of(attempt: str) -> list[str]:
    whole = [WHOLE.format(attempt, name) for name in ("manifest.json", "weights")]
    return [record_key(attempt), f"attempts/{attempt}/weights", HALF.format(attempt), *whole]


@pytest.mark.parametrize(
    ("fate", "claim", "gone", "aborted"),
    [
        (Fate.ENDED, None, ["attempts/a/weights", HALF.format("a")], True),
        (Fate.SILENT, None, [HALF.format("a")], True),
        (Fate.MAY_LIVE, None, [], False),
        (None, None, [], False),
        # the claim is made: nobody else can publish
        (Fate.MAY_LIVE, Claim("me", {"me", "a"}), everything_of("a")[1:], True),
        (Fate.ENDED, Claim("me", {"me"}), everything_of("a"), True),
        # it was this one that published, seen by a later attempt: its results are named, its checkpoints are not needed
        (Fate.ENDED, Claim("a", {"me", "a"}), everything_of("a")[2:], True),
        # of another run: only what its key says to be of this run's checkpoints
        (None, Claim("me", {"me"}), everything_of("a")[2:], False),
    ],
)
def test_what_may_be_removed_of_another_attempt(
    fate: Fate | None, claim: Claim | None, gone: list[str], aborted: bool
) -> None:
    """Each of these keys is a promise: what could still be published is never touched."""
    never = ["manifest.json", "readme.md", "attempts/me.json", "attempts/me/weights", "attempts/unknown/weights"]
    objects = [StoredObject(key, 1) for key in [*everything_of("a"), *never]]
    uploads = [Unfinished("attempts/a/pipeline", "1"), Unfinished("attempts/unknown/pipeline", "2")]
    found = leftovers(objects, uploads, {} if fate is None else {"a": fate}, RUN, claim)
    assert found.keys == tuple(sorted(gone))
    assert found.uploads == (tuple(uploads[:1]) if aborted else ())


@pytest.mark.parametrize(
    ("fate", "claim", "gone"),
    [
        (Fate.ENDED, None, ["2-a/weights"]),
        (Fate.SILENT, None, ["2-a/weights"]),
        (Fate.MAY_LIVE, None, []),
        (None, None, []),
        # its first export is named by whoever published, and stays wherever it came from
        (Fate.ENDED, Claim("me", {"me"}, {"exports/run-1/1-a/weights", "exports/run-1/1-a/export.json"}),
         ["2-a/weights"]),
        (Fate.MAY_LIVE, Claim("me", {"me"}), ["1-a/export.json", "1-a/weights", "2-a/weights"]),
    ],
)  # fmt: skip
def test_what_may_be_removed_of_weights_on_the_way(fate: Fate | None, claim: Claim | None, gone: list[str]) -> None:
    """The second one is half there."""
    keys = [f"exports/run-1/{name}" for name in ("1-a/weights", "1-a/export.json", "2-a/weights")]
    objects = [StoredObject(key, 1) for key in (*keys, "exports/run-2/1-a/weights")]
    found = leftovers(objects, [], {} if fate is None else {"a": fate}, RUN, claim)
    assert found.keys == tuple(f"exports/run-1/{name}" for name in gone)


def test_a_last_word_is_the_last(tmp_path: Path) -> None:
    """What the training thread still says after the grace is over does not undo how the attempt ended."""
    store = FileStore(tmp_path)
    with Journal(store, RUN, "pod-1", None, lambda text: None) as journal:
        journal.close(ExitCode.INTERRUPTED)
        journal.stage("Done")
    assert journal.attempts()[-1].exit_code == 75
    assert json.loads(store.get_bytes("attempts/pod-1.json") or b"")["exitCode"] == 75
