"""A store that is slow, fails or dies never stands between two steps: told by the order of events, not by the clock."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
from finetune_api import TrainingRun
from finetune_trainer.background import Background
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.data.samples import Batch, Samples
from finetune_trainer.engines import NonFiniteLoss
from finetune_trainer.errors import ConfigurationError, RunError
from finetune_trainer.publish.file_store import FileStore
from finetune_trainer.telemetry.listener import StepReport
from support.stepping import spoilt
from support.training import Memory, make_run, train_once

PATIENCE = 60
"""Seconds after which a test that hangs fails."""


class PowerCut(BaseException):
    """Nothing in the trainer can catch it."""


class Told(Memory):
    """Tells what is done at each step, and may do something."""

    def __init__(self, events: list[str], at: Callable[[int], object] = lambda step: None) -> None:
        super().__init__()
        self.events, self.at = events, at

    def step(self, report: StepReport) -> None:
        super().step(report)
        self.events.append(f"step {report.step}")
        self.at(report.step)

    def checkpoint(self, step: int, seconds: float) -> None:
        super().checkpoint(step, seconds)
        self.events.append(f"told {step}")


class Watched(FileStore):
    """Tells of each checkpoint whose upload begins and ends, and may do something in between."""

    def __init__(self, root: Path, events: list[str], within: Callable[[int], object] = lambda step: None) -> None:
        super().__init__(root)
        self.events, self.within = events, within

    def put_file(self, key: str, path: Path) -> None:
        step = int(key.split("/")[1].partition("-")[0])
        if path.name == "optimizer.safetensors":
            self.events.append(f"begins {step}")
            self.within(step)
        super().put_file(key, path)
        if path.name == "manifest.json":
            self.events.append(f"stored {step}")


def run_of(steps: int = 8, **sections: dict[str, object]) -> TrainingRun:
    return make_run(training={"steps": steps, "learningRate": 1e-2}, checkpoints={"everySteps": 2}, **sections)


def test_a_store_that_hangs_delays_no_step(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    """One checkpoint is on its way; those that fall due meanwhile are made when it is done, of the state as it is
    then."""
    events: list[str] = []
    gate = threading.Event()

    def hang(step: int) -> None:
        if step == 2 and not gate.wait(PATIENCE):
            raise RunError("the training waited for the store")

    store = Watched(tmp_path / "store", events, hang)
    listener = Told(events, lambda step: gate.set() if step == 7 else None)
    _, outcome = train_once(
        run_of(), tiny_sd, pictures, tmp_path / "slow", listener=listener, store=store, background=Background()
    )
    assert (outcome.step, outcome.saved_step) == (8, 8)
    assert [event for event in events if event.startswith("step")] == [f"step {step}" for step in range(1, 9)]
    assert events.index("begins 2") < events.index("stored 2")
    assert events.index("step 7") < events.index("stored 2") < events.index("told 2")
    assert not {"begins 4", "begins 6"} & set(events), "a second one is never on its way"
    assert listener.checkpoints[0] == 2
    assert set(listener.checkpoints) <= {2, 7, 8}
    assert "checkpoint" in listener.activities, "how long the training stood still is told"


@pytest.mark.parametrize("ema", [False, True])
def test_what_is_stored_is_the_state_of_its_step(ema: bool, tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    """Though it is written when the training is long past it."""
    gate, background = threading.Event(), Background()

    class Busy(Told):
        """So that nothing is written before the last step."""

        def begins(self, total_steps: int, resumed_from: int | None) -> None:
            background.submit(lambda: gate.wait(PATIENCE), Future.result)

    training = {"steps": 8, "learningRate": 1e-2, "ema": ema}
    run = make_run(training=training, checkpoints={"everySteps": 2})
    listener = Busy([], lambda step: step == 8 and gate.set())
    train_once(
        run, tiny_sd, pictures, tmp_path / "a", listener=listener, store=FileStore(tmp_path), background=background
    )
    assert listener.checkpoints == [2, 8]
    train_once(make_run(training=training | {"steps": 2}), tiny_sd, pictures, tmp_path / "b")
    late, prompt = tmp_path / "checkpoints" / "00000002-first", tmp_path / "b" / "checkpoints" / "00000002"
    names = {path.name for path in prompt.iterdir()}
    assert names >= {"weights.safetensors", "optimizer.safetensors", "state.json"}
    assert ("average.safetensors" in names) == ema
    assert [name for name in names if (late / name).read_bytes() != (prompt / name).read_bytes()] == []


def test_a_store_that_refuses_is_heard_at_the_next_boundary(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    background, done = Background(), threading.Event()

    def refuse(step: int) -> None:
        raise ConfigurationError("output.secretRef: access denied")

    def until_it_has(step: int) -> None:
        if step == 5:
            background.submit(done.set, Future.result)
            assert done.wait(PATIENCE)

    store, listener = Watched(tmp_path / "store", [], refuse), Told([], until_it_has)
    with pytest.raises(ConfigurationError, match="access denied"):
        train_once(run_of(20), tiny_sd, pictures, tmp_path, listener=listener, store=store, background=background)
    assert len(listener.steps) <= 5
    assert listener.checkpoints == []


def test_the_last_checkpoint_is_made_once(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    """It is on its way when the training ends."""
    events: list[str] = []
    gate = threading.Event()

    class Ends(Background):
        def finish(self) -> None:
            gate.set()
            super().finish()

    class Begins(Told):
        def begins(self, total_steps: int, resumed_from: int | None) -> None:
            gate.clear()

    store = Watched(tmp_path / "store", events, lambda step: gate.wait(PATIENCE))
    _, outcome = train_once(
        run_of(2), tiny_sd, pictures, tmp_path, listener=Begins(events), store=store, background=Ends()
    )
    assert outcome.saved_step == 2
    assert [event for event in events if "2" in event] == ["step 2", "begins 2", "stored 2", "told 2"]


def test_a_store_that_is_away_for_a_moment_costs_one_checkpoint(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    def away(step: int) -> None:
        if step == 2:
            raise RunError("no answer")

    store, listener = Watched(tmp_path / "store", [], away), Memory()
    _, outcome = train_once(
        run_of(), tiny_sd, pictures, tmp_path, listener=listener, store=store, background=Background()
    )
    assert (outcome.step, outcome.saved_step) == (8, 8)
    assert "The checkpoint of step 2 was not uploaded: no answer" in listener.messages
    assert listener.checkpoints[-1] == 8


def test_killed_between_snapshot_and_upload_it_goes_on_from_the_one_before(
    tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    """Half of the checkpoint of step 4 is in the store when the machine is gone, and the training is at step 5."""
    events: list[str] = []
    half = threading.Event()

    def die(step: int) -> None:
        if step == 4:
            half.set()
            raise PowerCut

    def at(step: int) -> None:
        if step == 3:
            # or 4 would be put off
            while "told 2" not in events:
                background.finish()
        if step == 5:
            assert half.wait(PATIENCE)
            raise PowerCut

    run, root, background = run_of(), tmp_path / "store", Background()
    with pytest.raises(PowerCut):
        train_once(
            run,
            tiny_sd,
            pictures,
            tmp_path / "a",
            listener=Told(events, at),
            store=Watched(root, events, die),
            background=background,
        )
    assert "begins 4" in events
    assert "stored 4" not in events
    resumed = Memory()
    _, outcome = train_once(
        run, tiny_sd, pictures, tmp_path / "b", listener=resumed, store=FileStore(root), attempt="second"
    )
    assert (outcome.resumed_from_step, resumed.resumed_from, outcome.step) == (2, 2, 8)
    _, whole = train_once(run, tiny_sd, pictures, tmp_path / "whole")
    assert outcome.losses == whole.losses


def test_what_an_earlier_try_of_this_process_gave_is_stored_before_the_newest_is_looked_for(
    tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    """A training that ran out of memory is tried again at once, with a leaner plan."""
    looks = iter(range(3))
    train_once(run_of(), tiny_sd, pictures, tmp_path, lambda: next(looks, None) is None)
    folder, hidden, gate = tmp_path / "checkpoints", tmp_path / "hidden", threading.Event()
    folder.rename(hidden)

    class Asked(Background):
        def finish(self) -> None:
            gate.set()
            super().finish()

    background = Asked()
    background.submit(lambda: gate.wait(PATIENCE) and hidden.rename(folder), Future.result)
    _, outcome = train_once(run_of(), tiny_sd, pictures, tmp_path, background=background)
    assert outcome.resumed_from_step == 3


@pytest.mark.parametrize("time", [True, False], ids=["time", "no time"])
def test_on_sigterm_what_is_on_its_way_is_waited_for(
    time: bool, tiny_sd: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the last state is stored behind it, where the grace suffices; else the one on its way counts."""
    asked = threading.Event()
    looks = iter(range(5))

    def should_stop() -> bool:
        if next(looks, None) is None:
            asked.set()
        return asked.is_set()

    store = Watched(tmp_path / "store", [], lambda step: step > 2 or asked.wait(PATIENCE))
    made: Callable[..., None] = Checkpoints.__init__

    def with_grace(self: Checkpoints, *args: object) -> None:
        made(self, *args, lambda: 0.0 if asked.is_set() and not time else float("inf"))

    monkeypatch.setattr(Checkpoints, "__init__", with_grace)
    listener = Memory()
    _, stopped = train_once(
        run_of(), tiny_sd, pictures, tmp_path / "a", should_stop, listener, store, background=Background()
    )
    assert (stopped.interrupted, stopped.step) == (True, 5)
    assert stopped.saved_step == (5 if time else 2)
    assert any("take too long for the 0 s" in message for message in listener.messages) == (not time)


@pytest.mark.parametrize("late", [1, 3, 20])
def test_figures_that_are_read_late_are_all_told_in_order(
    late: int, tiny_sd: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And checkpoints have those that were still on their way: a training goes on with the same bits."""
    run = run_of()
    _, prompt = train_once(run, tiny_sd, pictures, tmp_path / "prompt")
    monkeypatch.setattr("finetune_trainer.training.loop.lateness", lambda device: late)
    listener, again = Memory(), Memory()
    behind: list[int] = []
    looks = iter(range(5))

    def should_stop() -> bool:
        behind.append(len(listener.steps))
        return next(looks, None) is None

    _, stopped = train_once(run, tiny_sd, pictures, tmp_path / "late", should_stop, listener)
    assert behind == [max(0, step - late) for step in range(6)]
    assert (stopped.step, stopped.saved_step) == (5, 5)
    assert [report.step for report in listener.steps] == [1, 2, 3, 4, 5]
    assert stopped.losses == prompt.losses[:5]
    # at the end nothing is on its way any more; before it there was
    shutil.rmtree(tmp_path / "late" / "checkpoints" / "00000005")
    found = Checkpoints(tmp_path / "late" / "checkpoints", None, "", "run", "x", 2).latest()
    assert found is not None
    assert found[1].losses == prompt.losses[:4]
    _, outcome = train_once(run, tiny_sd, pictures, tmp_path / "late", listener=again)
    assert (outcome.resumed_from_step, outcome.losses, outcome.loss) == (4, prompt.losses, prompt.loss)
    assert [report.step for report in again.steps] == [5, 6, 7, 8]


def test_a_training_that_diverges_is_noticed_late_but_is(
    tiny_sd: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.training.loop.lateness", lambda device: 2)
    whole: Callable[[Samples, int], list[Batch]] = Samples.step
    monkeypatch.setattr(
        Samples, "step", lambda samples, step: [spoilt(one) if step >= 3 else one for one in whole(samples, step)]
    )
    listener, asked = Memory(), []
    with pytest.raises(NonFiniteLoss, match=r"^steps 4 to 6 of 50: .* the training diverged"):
        train_once(make_run(training={"steps": 50}), tiny_sd, pictures, tmp_path, lambda: asked.append(0), listener)
    assert (len(listener.steps), len(asked)) == (5, 8), "two steps were given to the device since the sixth"
