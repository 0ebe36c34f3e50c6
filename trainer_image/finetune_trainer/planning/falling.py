"""When a plan does not do after all: a GPU's memory does not suffice, or no step can be recorded. Once more, with the
next plan.

Which errors a process survives: out of memory, and whatever breaks off a recording (an operation that is not permitted
meanwhile, a compiler that fails) leave CUDA's context as it was. An illegal address, a failed assertion on the device
or broken hardware end it, and with it all that this process could do on the GPU: then another process goes on.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from finetune_api.engine import OPTIMIZERS

from finetune_trainer.engines.recording import RecordingFailed
from finetune_trainer.errors import ConfigurationError, PeerLost, RunError
from finetune_trainer.planning.plan_file import PlanFile
from finetune_trainer.planning.plans import RECORDED, Facts, Plan, next_leaner, next_unrecorded

NO_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What torch says of memory that a library asked the driver for, past torch's own allocator."""


class PlanFailed(ConfigurationError):
    """A step, or what comes before the first, could not be carried out. Weights may be half updated: everything that
    holds them is of no use any more."""

    def __init__(self, message: str, to: Plan | None) -> None:
        super().__init__(message)
        self.to = to
        """What to try in its place, from the last checkpoint or the start; None where nothing is left to try."""


@contextmanager
def carrying_out(facts: Facts, plan: Plan) -> Iterator[None]:
    """Turns what is raised within, where `plan` is to blame, into a PlanFailed. One fall for want of memory is enough;
    after one because of a recording nothing is recorded any more."""
    try:
        yield
    except (RuntimeError, RecordingFailed) as error:
        if _is_out_of_memory(error):
            raise _out_of_memory(facts, plan) from error
        if isinstance(error, RecordingFailed) and (facts.asked.kind == "Auto" or gpu_answers()):
            raise _not_recorded(facts, plan, str(error)) from error
        raise


def begin_again(to: Plan, plan_file: PlanFile, in_group: bool) -> None:
    """Makes this process ready to go on with `to`, or leaves it for the next one. To be called outside of the `except`
    that caught a PlanFailed: what it was raised from holds all the memory.

    Raises:
        PeerLost: this process is one of a group, and the others may be in the middle of a sum: all of them are to begin
            again, which costs no retry.
        RunError: the GPU does nothing any more for this process, which costs one; or the store failed.
    """
    told = f"{to.after[-1].words}; the next attempt begins with {to.words}"
    if in_group:
        plan_file.write(to)
        raise PeerLost(f"{told}, with all processes of the group")
    if not gpu_answers():
        plan_file.write(to)
        raise RunError(f"{told}: this process cannot use the GPU any more")
    _release_memory()


def gpu_answers() -> bool:
    """Whether this process can still use its GPU. True where it never has."""
    if not torch.cuda.is_initialized():
        return True
    try:
        # random numbers too, whose generator takes part in recordings
        torch.rand(1, device="cuda").item()
    except RuntimeError:
        return False
    return True


def _release_memory() -> None:
    """Gives back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Also where another error came of it: a recording that breaks off is told by the end of the recording."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def _out_of_memory(facts: Facts, plan: Plan) -> PlanFailed:
    said = f"spec.engine: {plan.words} ran out of the GPU's memory"
    before = [failure for failure in plan.after if failure.how == "Memory"]
    if before:
        said += f", and so did {before[-1].does} before"
    return PlanFailed(f"{said}; {_remedies(facts, plan)}", None if before else next_leaner(facts, plan))


def _not_recorded(facts: Facts, plan: Plan, why: str) -> PlanFailed:
    message = (
        f"spec.engine.kind is {plan.kind}, but steps of this training cannot be recorded ({why}); use Auto or Eager"
    )
    return PlanFailed(message, next_unrecorded(facts, plan, why) if plan.kind in RECORDED else None)


def _remedies(facts: Facts, plan: Plan) -> str:
    halved = facts.described is not None and facts.described.halved > 0
    smaller = "AdamW8bit" in OPTIMIZERS.get(plan.kind, ("AdamW8bit",)) and not halved
    ways = [
        "training.gradientCheckpointing true" if not plan.checkpointing else "",
        "a smaller training.batchSize" if facts.samples > 1 else "",
        "a smaller dataset.resolution",
        "training.optimizer.name AdamW8bit with training.weightsDtype bf16" if smaller else "",
        "engine.kind DeepSpeed with offload" if plan.kind != "DeepSpeed" else "",
        "a GPU with more memory",
    ]
    *others, last = (way for way in ways if way)
    return f"use {', '.join(others)}, or {last}"
