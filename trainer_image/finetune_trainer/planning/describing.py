"""Describes a training for memory.py: looks at a module's tensors, and at what its forward pass keeps.

The forward pass is run with one sample and with two, in the training's own precision. What it would keep is counted
and let go at once, so that this takes hardly more memory than drawing a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from weakref import finalize

import torch
from finetune_api.training_run import ResolvedTraining
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from finetune_trainer.data.samples import Batch, mapped
from finetune_trainer.engines.halves import half_for, roundable
from finetune_trainer.engines.precision import HALVES, Precision, autocast, precision_of
from finetune_trainer.engines.trained_halves import half_trained
from finetune_trainer.methods.base import ParameterGroup
from finetune_trainer.planning.memory import Bytes, Description, Unit


def describe(
    module: nn.Module,
    resident: Iterable[nn.Module],
    groups: Sequence[ParameterGroup],
    spec: ResolvedTraining,
    example: Sequence[Batch],
    device: torch.device,
    area: float = 1.0,
) -> Description:
    """A description of the training of `groups` in `module`, which may have gradient checkpointing on or off.

    Args:
        module: maps a Batch to (loss, losses of samples).
        resident: what else is on `device`.
        example: the micro-batches of a step, each on any device.
        area: of the largest pictures that there will be, by that of the largest of `example`.
    """
    trained = [value for group in groups for value in group.parameters.values()]
    largest = max(example, key=lambda batch: batch.noise.numel())
    precision = precision_of(spec, device)
    halved = half_trained(module, trained) if spec.weights_dtype == "bf16" else []
    with _rounded(halved, torch.bfloat16), _rounded(roundable(module), half_for(precision, device)):
        one, two = (
            _trace(module, mapped(largest, lambda rows, n=n: rows[:1].repeat_interleave(n, 0)), precision, device)
            for n in (1, 2)
        )
        frozen = _frozen_bytes((module, *resident), trained)
    return Description(
        frozen=frozen,
        trained=tuple(tuple(value.shape) for value in trained),
        units=tuple(
            Unit(
                _line(a.before, b.before, area),
                _line(a.saved, b.saved, area),
                _line(a.inputs, b.inputs, area),
                a.trained,
                a.halved,
            )
            for a, b in zip(one.units, two.units, strict=True)
        ),
        saved_last=_line(one.outside, two.outside, area),
        largest_saved=_line(one.largest, two.largest, area),
        samples=len(largest.timesteps),
        micro_batches=len(example),
        optimizer=spec.optimizer.name,
        ema=spec.ema,
        half=precision in HALVES,
        halved=_numbers(halved),
    )


@dataclass
class _TracedUnit:
    trained: int
    halved: int
    before: int
    saved: int = 0
    inputs: int = 0


@dataclass
class _Trace:
    """Bytes that a forward pass keeps."""

    units: list[_TracedUnit] = field(default_factory=list)
    outside: int = 0
    """Since the last unit."""
    largest: int = 0


def _trace(module: nn.Module, batch: Batch, precision: Precision, device: torch.device) -> _Trace:
    found = _Trace()
    parameters = {value.untyped_storage()._cdata for value in (*module.parameters(), *module.buffers())}
    # with gradient checkpointing other things are kept than without
    plain, twice = _Counter(parameters), _Counter(parameters)

    def keeps_outside(value: Tensor) -> None:
        size = plain.new_bytes(value)
        twice.new_bytes(value)
        found.outside += size
        found.largest = max(found.largest, size)

    def run_unit(function: Callable[..., object], *args: object, **kwargs: object) -> object:
        trained = [value for value in _owner(function).parameters() if value.requires_grad]
        halved = [value for value in trained if value.dtype == torch.bfloat16]
        unit = _TracedUnit(_numbers(trained), _numbers(halved), before=found.outside)
        found.units.append(unit)
        found.outside = 0

        def keeps(value: Tensor) -> None:
            size = plain.new_bytes(value)
            unit.saved += size
            found.largest = max(found.largest, size)

        with saved_tensors_hooks(keeps, _never):
            result = function(*args, **kwargs)
        if unit.saved:
            # where nothing needs a gradient, nothing waits to be computed again
            given = (value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
            unit.inputs = sum(map(twice.new_bytes, given))
        return result

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(_units_run_by(module, run_unit))
        stack.enter_context(saved_tensors_hooks(keeps_outside, _never))
        stack.enter_context(autocast(precision, device))
        module(batch.to(device))
    return found


@contextmanager
def _rounded(parameters: Iterable[nn.Parameter], half: torch.dtype | None) -> Iterator[None]:
    """Within, the weights are as they are kept while steps are made."""
    before = [(one, one.data) for one in parameters] if half is not None else []
    for parameter, value in before:
        parameter.data = value.to(half)
    try:
        yield
    finally:
        for parameter, value in before:
            parameter.data = value


class _Counter:
    """Counts each storage once, as long as it lives; those in `left_out` never."""

    def __init__(self, left_out: set[int]) -> None:
        self._seen = set(left_out)

    def new_bytes(self, value: Tensor) -> int:
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return 0
        self._seen.add(key)
        # its place in memory may be given to another one then
        finalize(storage, self._seen.discard, key)
        return storage.nbytes()


@contextmanager
def _units_run_by(module: nn.Module, run: Callable[..., object]) -> Iterator[None]:
    """Within, `run` gets what gradient checkpointing would run twice. Diffusers and transformers ask the same two
    attributes of each block."""
    blocks = [one for one in module.modules() if hasattr(one, "gradient_checkpointing")]
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    before = [{name: one.__dict__[name] for name in names if name in one.__dict__} for one in blocks]
    for one in blocks:
        one.__dict__.update(zip(names, (True, run), strict=True))
    try:
        yield
    finally:
        for one, values in zip(blocks, before, strict=True):
            for name in names:
                one.__dict__.pop(name, None)
            one.__dict__.update(values)


def _numbers(tensors: Iterable[Tensor]) -> int:
    return sum(value.numel() for value in tensors)


def _owner(function: Callable[..., object]) -> nn.Module:
    """The module whose forward pass `function` is: itself, or what a partial of its method is bound to."""
    if isinstance(function, nn.Module):
        return function
    return _owner(function.func if isinstance(function, partial) else function.__self__)  # type: ignore[attr-defined]  # a bound method


def _never(kept: None) -> Tensor:
    raise RuntimeError("a forward pass that is only counted has no backward pass")


def _line(one: int, two: int, area: float) -> Bytes:
    """Through the bytes of one sample and of two, for pictures `area` times as large."""
    return Bytes(fixed=2 * one - two, per_sample=(two - one) * area)


def _frozen_bytes(modules: Iterable[nn.Module], trained: Sequence[Tensor]) -> int:
    counter = _Counter({value.untyped_storage()._cdata for value in trained})
    return sum(counter.new_bytes(value) for one in modules for value in (*one.parameters(), *one.buffers()))
