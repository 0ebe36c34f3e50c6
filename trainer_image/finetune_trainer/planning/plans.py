"""Which engine executes a training, and what it does to fit: pure, from what is known before the first step.

Plans stand in a row, the fastest first. The first that is predicted to fit is taken; when its memory does not suffice
after all, the next one that is predicted to take less follows, and when it cannot be recorded, one that need not be. A
later attempt begins with the plan in force.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from finetune_api.engine import ZERO_STAGE, EngineKind, EngineSpec
from finetune_api.training_run import ResolvedTraining

from finetune_trainer.planning.memory import Description, predict

MARGIN = 1.1
"""Times the prediction: torch's allocator rounds up and leaves gaps."""
RESERVED = 2**29
"""Bytes that cuDNN, cuBLAS and CUDA take for themselves once they work."""
LEANER = 0.9
"""A plan after one that did not fit takes at most this share of it."""
STEPS_TO_RECORD = 20
"""Steps that each shape of batches must come to, on average, for its recording to be worth the time."""
SECONDS_TO_COMPILE = 200.0
"""For one shape of batches: 195 s were measured once, on an H100 with 16 cores."""
SECONDS_SAVED = 1.4e-6
"""By compiling, in a step: for each sample, each place of its latents, and each thousand million parameters. 20 ms of a
step of four samples of 64 × 64 places with 860 million, in the same measurement."""
WORTHWHILE = 2.0
"""Times the time to compile that must be saved: the figures above are of one machine."""
RECORDED: tuple[EngineKind, ...] = ("Captured", "Compiled")
"""Kinds that record a step and repeat it."""


@dataclass(frozen=True)
class Facts:
    """What is known before the first step."""

    asked: EngineSpec
    """What the run says."""
    available: frozenset[EngineKind]
    """Kinds that this trainer has, and that can run here."""
    device: Literal["cpu", "cuda"]
    checkpointing: bool
    """Whether the run asks for gradient checkpointing."""
    steps: int
    processes: int
    """That train together."""
    samples: int
    """Of the largest micro-batch of one process, class samples included."""
    shapes: int = 1
    """Different shapes that micro-batches can have."""
    latents: int = 4096
    """Places of a sample in the denoiser's input."""
    numbers: int = 0
    """Parameters of the module."""
    capturable: bool = True
    """Whether steps of these settings can be recorded, which those of a compiled model are too."""
    capturable_twice: bool = True
    """Whether they can be with activations computed twice."""
    memory: int | None = None
    """Bytes of the device that the training may take; None where that is not planned, as on a CPU."""
    described: Description | None = None
    """None where `memory` is, and where there is not even memory to look."""


@dataclass(frozen=True)
class Failure:
    """A plan that was tried and given up."""

    does: str
    """The plan, for people."""
    how: Literal["Memory", "Recording"]
    """What did not do: the device's memory, or the recording of a step."""
    said: str = ""
    """Why a step could not be recorded: a line."""

    @property
    def words(self) -> str:
        """Captured ran out of memory"""
        if self.how == "Memory":
            return f"{self.does} ran out of memory"
        return f"{self.does}: steps could not be recorded ({self.said})"


@dataclass(frozen=True)
class Plan:
    """How a training is executed."""

    engine: EngineSpec
    """As the run asks, with a kind that is not Auto."""
    checkpointing: bool
    """Whether activations are computed twice."""
    cuts: int
    """Pieces that each micro-batch is cut into."""
    why: str
    predicted_bytes: int | None = None
    """At the peak, on one device; None where that is not planned."""
    after: tuple[Failure, ...] = ()
    """What was given up for it, this attempt's and earlier ones', the latest last."""

    @property
    def kind(self) -> EngineKind:
        return self.engine.kind

    def applied_to(self, spec: ResolvedTraining) -> ResolvedTraining:
        """`spec` as the engine is to see it."""
        return spec.model_copy(update={"gradient_checkpointing": self.checkpointing})

    @property
    def words(self) -> str:
        """What is done, for people: DeepSpeed, ZeRO-2, optimizer on the host, activations computed twice."""
        engine = self.engine
        parts = [
            engine.kind,
            f"ZeRO-{engine.zero_stage or ZERO_STAGE}" if engine.kind == "DeepSpeed" else "",
            f"optimizer on {PLACES[engine.offload_optimizer]}" if engine.offload_optimizer != "None" else "",
            f"parameters on {PLACES[engine.offload_parameters]}" if engine.offload_parameters != "None" else "",
            "activations computed twice" if self.checkpointing else "",
            f"micro-batches cut in {self.cuts}" if self.cuts > 1 else "",
        ]
        return ", ".join(part for part in parts if part)


PLACES = {"Cpu": "the host", "Nvme": "its disk"}


def choose(facts: Facts) -> Plan:
    """The fastest plan that is predicted to fit; where none is, the leanest."""
    return _first_that_fits(facts, plans(facts))


def resume(facts: Facts, kept: Plan) -> Plan:
    """The plan of an attempt that follows one with `kept`: the same, so that both end with the same bits. Where that is
    not available here, or not predicted to fit, another one, which says so; what was given up is not tried again."""
    row = plans(facts)
    place = _place(row, kept)
    if place is None:
        anew = choose(facts)
        return replace(anew, why=f"{anew.why}; {kept.words}, as the attempt before had it, is not available here")
    same = replace(row[place], why=kept.why, after=kept.after)
    if facts.memory is None or (facts.described is not None and _size(same) <= _room(facts.memory)):
        return same
    anew = _first_that_fits(facts, row[place:] if kept.after else row)
    if _does_the_same(anew, same):
        return same
    why = f"{anew.why}; {kept.words}, as the attempt before had it, does not fit here"
    return replace(anew, why=why, after=kept.after)


def next_leaner(facts: Facts, failed: Plan) -> Plan | None:
    """What to try when `failed`, one of these functions' own, ran out of memory; None where nothing is leaner."""
    failure = Failure(failed.words, "Memory")
    limit = None if failed.predicted_bytes is None else failed.predicted_bytes * LEANER
    for plan in _behind(facts, failed):
        if limit is None or plan.predicted_bytes is None or plan.predicted_bytes <= limit:
            return replace(plan, why=failure.words, after=(*failed.after, failure))
    return None


def next_unrecorded(facts: Facts, failed: Plan, said: str) -> Plan | None:
    """What to try when no step can be recorded, as `failed` would have it; None where the run names a kind that does.

    Args:
        said: why it cannot, a line.
    """
    failure = Failure(failed.words, "Recording", said)
    row = [plan for plan in _behind(facts, failed) if plan.kind not in RECORDED]
    if facts.asked.kind != "Auto" or not row:
        return None
    if failed.after and failed.predicted_bytes is not None:
        # more than this ran out of memory before
        row = [plan for plan in row if _size(plan) <= _size(failed)] or row[-1:]
    return replace(_first_that_fits(facts, row), why=failure.words, after=(*failed.after, failure))


def plans(facts: Facts) -> list[Plan]:
    """All that come into question, the fastest first. At least one."""
    found = []
    for engine, checkpointing, cuts, why in _rungs(facts):
        predicted = None
        if facts.described is not None:
            predicted = predict(facts.described, engine, checkpointing, cuts, facts.processes).total
        found.append(Plan(engine, checkpointing, cuts, why, predicted))
    return found


def _rungs(facts: Facts) -> Iterator[tuple[EngineSpec, bool, int, str]]:
    asked = facts.asked
    if asked.kind != "Auto":
        why = "as spec.engine.kind says"
        if facts.device == "cpu" and asked.kind in RECORDED:
            why += "; a CPU has no graphs, and does each step anew"
        yield from _leaner_ways(facts, asked, why)
        return
    if facts.processes > 1:
        yield from _leaner_ways(facts, _of_kind(asked, "Replicated"), "a copy in each process is the fastest")
        if "Sharded" in facts.available:
            yield _of_kind(asked, "Sharded"), True, 1, "the processes share the memory"
        return
    if facts.device == "cpu":
        yield from _leaner_ways(facts, _of_kind(asked, "Eager"), "one process on a CPU")
        return
    capturable = facts.capturable_twice if facts.checkpointing else facts.capturable
    if "Compiled" in facts.available and capturable and pays_to_compile(facts):
        why = f"{facts.steps} steps are worth the time to compile"
        yield _of_kind(asked, "Compiled"), facts.checkpointing, 1, why
    if "Captured" in facts.available and capturable and facts.steps >= STEPS_TO_RECORD * facts.shapes:
        yield from _leaner_ways(facts, _of_kind(asked, "Captured"), "a recorded step is the fastest")
    yield from _leaner_ways(facts, _of_kind(asked, "Eager"), "one process")
    if "DeepSpeed" in facts.available:
        away: dict[str, object] = {"zero_stage": 2, "offload_optimizer": "Cpu"}
        yield _of_kind(asked, "DeepSpeed", **away), True, facts.samples, "the optimizer does not fit on the GPU"
        away |= {"zero_stage": 3, "offload_parameters": "Cpu"}
        yield _of_kind(asked, "DeepSpeed", **away), True, facts.samples, "the weights do not fit on the GPU"


def _leaner_ways(facts: Facts, engine: EngineSpec, why: str) -> Iterator[tuple[EngineSpec, bool, int, str]]:
    """One engine, and what it can do to take less. Smaller pieces cost a recorded step little, and others a launch of
    everything once more: more than computing activations twice."""
    pieces = _divisors(facts.samples)
    yield engine, facts.checkpointing, 1, why
    recorded = engine.kind in RECORDED
    if recorded:
        yield from ((engine, facts.checkpointing, cuts, why) for cuts in pieces)
        if not facts.capturable_twice:
            return
    if not facts.checkpointing:
        yield engine, True, 1, why
    if not recorded or not facts.checkpointing:
        yield from ((engine, True, cuts, why) for cuts in pieces)


def pays_to_compile(facts: Facts) -> bool:
    """Whether the steps save more time than compiling takes."""
    saved = facts.steps * facts.samples * facts.latents * facts.numbers / 1e9 * SECONDS_SAVED
    return saved >= WORTHWHILE * SECONDS_TO_COMPILE * facts.shapes


def gibibytes(count: int) -> str:
    """2.5 GiB"""
    return f"{count / 2**30:.1f} GiB"


def _divisors(samples: int) -> list[int]:
    """Into how many equal pieces so many samples can be cut, 2 and more, at most one for each doubling."""
    found: list[int] = []
    for pieces in range(2, samples + 1):
        if samples % pieces == 0 and pieces >= 2 * (found[-1] if found else 1):
            found.append(pieces)
    return found


def _of_kind(asked: EngineSpec, kind: EngineKind, **options: object) -> EngineSpec:
    # not checked: Auto has no options, and what is set here goes together
    return asked.model_copy(update={"kind": kind, **options})


def _first_that_fits(facts: Facts, row: Sequence[Plan]) -> Plan:
    """Of `row`, else its leanest."""
    if facts.memory is None:
        return row[0]
    if facts.described is None:
        return replace(row[-1], why="two samples alone, without gradients, did not fit; this is the leanest")
    for number, plan in enumerate(row):
        if _size(plan) <= _room(facts.memory):
            return plan if number == 0 else replace(plan, why=f"{plan.why}; {_too_large(row[0], facts.memory)}")
    leanest = min(row, key=_size)
    return replace(leanest, why=f"nothing is predicted to fit in {gibibytes(facts.memory)}; this is the leanest")


def _behind(facts: Facts, plan: Plan) -> list[Plan]:
    """What stands behind `plan` in the row; nothing where it does not stand there itself."""
    row = plans(facts)
    place = _place(row, plan)
    return [] if place is None else row[place + 1 :]


def _place(row: Sequence[Plan], plan: Plan) -> int | None:
    return next((number for number, other in enumerate(row) if _does_the_same(other, plan)), None)


def _size(plan: Plan) -> int:
    return plan.predicted_bytes or 0


def _room(memory: int) -> float:
    """Bytes that may be predicted where the device has `memory`."""
    return (memory - RESERVED) / MARGIN


def _does_the_same(plan: Plan, other: Plan) -> bool:
    return (plan.engine, plan.checkpointing, plan.cuts) == (other.engine, other.checkpointing, other.cuts)


def _too_large(plan: Plan, memory: int) -> str:
    return f"{plan.words} would take {gibibytes(_size(plan))} of {gibibytes(memory)}"
