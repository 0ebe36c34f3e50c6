"""The plan of an attempt that goes on: the one before it, as far as it does here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetune_api.engine import EngineKind, EngineSpec
from finetune_trainer.errors import PeerLost, RunError
from finetune_trainer.planning.falling import PlanFailed, _is_out_of_memory, begin_again, carrying_out
from finetune_trainer.planning.plan_file import PlanFile, from_json, to_json
from finetune_trainer.planning.plans import Facts, Failure, Plan, choose, next_leaner, next_unrecorded, resume
from finetune_trainer.publish.file_store import FileStore
from support.engine_facts import ALL, GIB, GPU

NOT_PERMITTED = "CUDA error: operation not permitted when stream is capturing"


def kept(plan: Plan | None) -> Plan:
    """As another attempt finds it."""
    assert plan is not None
    found = from_json(to_json(plan, "run"), "run")
    assert found is not None
    return found


def test_all_of_a_plan_is_kept_but_what_is_a_machines(tmp_path: Path) -> None:
    facts = replace(GPU, memory=8 * GIB)
    plan = choose(facts)
    assert plan.engine.offload_parameters == "Cpu"
    fallen = replace(plan, after=(Failure("Compiled", "Recording", NOT_PERMITTED), Failure("Eager", "Memory")))
    file = PlanFile(FileStore(tmp_path), "checkpoints/run-1/", "run")
    assert file.read() is None
    file.write(fallen)
    assert (tmp_path / "checkpoints/run-1/plan.json").is_file()
    assert file.read() == replace(fallen, predicted_bytes=None)
    assert PlanFile(FileStore(tmp_path), "checkpoints/run-1/", "another run").read() is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-9],
        lambda data: b"",
        lambda data: b"[]",
        lambda data: data.replace(b'"format": 1', b'"format": 2'),
        lambda data: data.replace(b"Captured", b"Fast"),
        lambda data: data.replace(b'"cuts"', b'"cut"'),
    ],
)
def test_what_is_no_plan_is_passed_over(damage: object) -> None:
    data = to_json(choose(GPU), "run")
    assert from_json(data, "run") == replace(choose(GPU), predicted_bytes=None)
    assert callable(damage)
    assert from_json(damage(data), "run") is None


@pytest.mark.parametrize(
    ("before", "now", "words", "why"),
    [
        # the same, also where another one would be chosen now
        (GPU, GPU, "Captured", "a recorded step is the fastest"),
        (GPU, replace(GPU, steps=25_000), "Captured", "a recorded step is the fastest"),
        (replace(GPU, memory=21 * GIB), GPU, "Captured, micro-batches cut in 2", "Captured would take 19.3 GiB of 21"),
        (
            replace(GPU, memory=8 * GIB, available=ALL - {"DeepSpeed"}),
            GPU,
            "Captured, activations computed twice, micro-batches cut in 4",
            "nothing is predicted to fit in 8.0 GiB; this is the leanest",
        ),
        # nothing fits, then as now
        (
            replace(GPU, memory=8 * GIB, available=ALL - {"DeepSpeed", "Captured"}),
            replace(GPU, memory=8 * GIB, available=ALL - {"DeepSpeed", "Captured"}),
            "Eager, activations computed twice, micro-batches cut in 4",
            "nothing is predicted to fit in 8.0 GiB; this is the leanest",
        ),
        # another one, and it says so
        (
            GPU,
            replace(GPU, memory=21 * GIB),
            "Captured, micro-batches cut in 2",
            "; Captured, as the attempt before had it, does not fit here",
        ),
        (
            GPU,
            replace(GPU, available=ALL - {"Captured"}),
            "Eager",
            "one process; Captured, as the attempt before had it, is not available here",
        ),
        (
            GPU,
            replace(GPU, described=None, available=ALL - {"DeepSpeed", "Captured"}, asked=EngineSpec(kind="Eager")),
            "Eager, activations computed twice, micro-batches cut in 4",
            "is not available here",
        ),
    ],
)
def test_an_attempt_that_goes_on_has_the_plan_before_it(before: Facts, now: Facts, words: str, why: str) -> None:
    plan = resume(now, kept(choose(before)))
    assert plan.words == words
    assert why in plan.why


def test_what_ran_out_of_memory_is_not_tried_again() -> None:
    fallen = kept(next_leaner(GPU, choose(GPU)))
    assert fallen.words == "Captured, micro-batches cut in 4"
    again = resume(GPU, fallen)
    assert (again.words, again.why) == (fallen.words, "Captured ran out of memory")
    assert again.after == (Failure("Captured", "Memory"),)
    smaller = resume(replace(GPU, memory=16 * GIB), fallen)
    assert smaller.words.startswith("DeepSpeed, ZeRO-2, optimizer on the host"), "behind it in the row"
    assert smaller.after == again.after
    assert "Captured, micro-batches cut in 4, as the attempt before had it, does not fit here" in smaller.why


def test_after_a_recording_that_failed_nothing_is_recorded() -> None:
    for steps, kind in ((500, "Captured"), (25_000, "Compiled")):
        facts = replace(GPU, steps=steps)
        plan = next_unrecorded(facts, choose(facts), NOT_PERMITTED)
        assert plan is not None
        assert (plan.words, plan.why) == ("Eager", f"{kind}: steps could not be recorded ({NOT_PERMITTED})")
        assert resume(facts, kept(plan)) == plan
        leaner = next_leaner(facts, plan)
        assert leaner is not None
        assert leaner.kind == "Eager"
        assert [failure.how for failure in leaner.after] == ["Recording", "Memory"]


def test_the_plan_that_need_not_be_recorded_fits() -> None:
    facts = replace(GPU, memory=21 * GIB)
    plan = next_unrecorded(facts, choose(facts), NOT_PERMITTED)
    assert plan is not None
    assert plan.words == "Eager, activations computed twice"


def test_a_recording_that_fails_after_memory_did_not_suffice_leads_to_nothing_larger() -> None:
    first = next_leaner(GPU, choose(GPU))
    assert first is not None
    plan = next_unrecorded(GPU, first, NOT_PERMITTED)
    assert plan is not None
    assert plan.words == "Eager, activations computed twice"
    assert (plan.predicted_bytes or 0) <= (first.predicted_bytes or 0)


@pytest.mark.parametrize("kind", ["Captured", "Compiled"])
def test_a_kind_that_was_asked_for_is_not_given_up(kind: EngineKind) -> None:
    facts = replace(GPU, asked=EngineSpec(kind=kind))
    assert next_unrecorded(facts, choose(facts), NOT_PERMITTED) is None


def test_a_group_leaves_its_next_plan_to_the_next_attempt_and_the_second_time_fails(tmp_path: Path) -> None:
    facts = replace(GPU, processes=2)
    plan_file = PlanFile(FileStore(tmp_path), "checkpoints/run-1/", "run")
    with pytest.raises(PlanFailed) as first, carrying_out(facts, choose(facts)):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert first.value.to is not None
    with pytest.raises(PeerLost, match="Replicated ran out of memory; the next attempt begins with Replicated, act"):
        begin_again(first.value.to, plan_file, in_group=True)

    left = plan_file.read()
    assert left is not None
    again = resume(facts, left)
    assert again == first.value.to
    with pytest.raises(PlanFailed, match="and so did Replicated before; use") as second, carrying_out(facts, again):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert second.value.to is None
    assert second.value.exit_code == 78


def test_a_plan_that_cannot_be_left_counts(tmp_path: Path) -> None:
    """Or the group would come to the same place for ever, at nobody's cost."""

    class Away(FileStore):
        def put_bytes(self, key: str, data: bytes, if_none_match: bool = False) -> bool:
            raise RunError("the store does not answer")

    to = next_leaner(replace(GPU, processes=2), choose(replace(GPU, processes=2)))
    assert to is not None
    with pytest.raises(RunError, match="does not answer") as failed:
        begin_again(to, PlanFile(Away(tmp_path), "checkpoints/run-1/", "run"), in_group=True)
    assert failed.value.exit_code.counts


@pytest.mark.parametrize(
    ("message", "is_memory"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        (NOT_PERMITTED, False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_what_is_for_want_of_memory(message: str, is_memory: bool) -> None:
    """Also where a library asked the driver for it, and not torch's allocator."""
    assert _is_out_of_memory(RuntimeError(message)) is is_memory
    after = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    after.__context__ = RuntimeError(message)
    assert _is_out_of_memory(after) is is_memory
