"""How much of its device's memory a training takes at its peak, from a description of it. Pure.

A step has two peaks: in the backward pass, where what the forward pass kept goes while gradients come, and in the
update. What torch's allocator rounds up, and what cuDNN and cuBLAS take for themselves, is not in the figures; a
margin for them is plans.py's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from finetune_api.engine import ZERO_STAGE, EngineSpec

from finetune_trainer.engines.adamw_8bit import BLOCK, SMALLEST
from finetune_trainer.engines.deepspeed_settings import LIVE_PARAMETERS

FLOAT = 4
"""Bytes of a float32 number: what trained weights and gradients are, but for those in bf16, and averages always."""
HALF = 2
"""Bytes of a bf16 number."""
PASSING = 2
"""Tensors as large as the largest one that is kept, which exist for a moment in the backward pass: a layer's incoming
and outgoing gradient."""


@dataclass(frozen=True)
class Bytes:
    """A size that grows with the samples of a micro-batch."""

    fixed: float = 0
    per_sample: float = 0

    def of(self, samples: float) -> float:
        """Bytes for a micro-batch of so many samples."""
        return self.fixed + self.per_sample * samples

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(self.fixed + other.fixed, self.per_sample + other.per_sample)


@dataclass(frozen=True)
class Unit:
    """A piece of the network that gradient checkpointing computes twice."""

    before: Bytes
    """Kept by what comes between the unit before and this one."""
    saved: Bytes
    """Kept by its forward pass for its backward pass."""
    inputs: Bytes
    """Kept in its place with gradient checkpointing."""
    trained: int
    """Trained numbers in it."""
    halved: int = 0
    """Of them, those that are kept in bf16."""

    @property
    def gradients(self) -> int:
        """Bytes of their gradients."""
        return bytes_of_trained(self.trained, self.halved)


@dataclass(frozen=True)
class Description:
    """What of a training takes memory."""

    frozen: int
    """Bytes of everything on the device that is not trained, other parts of the model included."""
    trained: tuple[tuple[int, ...], ...]
    """Shapes of the trained tensors."""
    units: tuple[Unit, ...]
    """In the order of the forward pass."""
    saved_last: Bytes
    """Kept after the last unit."""
    largest_saved: Bytes
    """The largest tensor that is kept."""
    samples: int
    """Of a micro-batch, class samples included."""
    micro_batches: int
    """Of an optimizer step, in one process."""
    optimizer: str
    """As training.optimizer.name."""
    ema: bool
    half: bool = False
    """Whether arithmetic is in bf16 or fp16."""
    halved: int = 0
    """Trained numbers that are kept in bf16."""

    @property
    def numbers(self) -> int:
        """Trained numbers."""
        return sum(map(math.prod, self.trained))

    @property
    def gradients(self) -> int:
        """Bytes of all gradients, and as many of the trained weights."""
        return bytes_of_trained(self.numbers, self.halved)

    @property
    def largest(self) -> int:
        """Numbers of the largest trained tensor."""
        return max(map(math.prod, self.trained))


@dataclass(frozen=True)
class Prediction:
    """Bytes at the peak, on one device."""

    weights: float
    """Frozen and trained."""
    optimizer: float
    """Its state, and what it copies for itself."""
    average: float
    working: float
    """Activations, gradients and what exists for a moment, at their worst."""

    @property
    def total(self) -> int:
        return math.ceil(self.weights + self.optimizer + self.average + self.working)


def predict(
    described: Description, engine: EngineSpec, checkpointing: bool, cuts: int = 1, processes: int = 1
) -> Prediction:
    """The peak of a training with `engine`, whose kind is not Auto.

    Args:
        checkpointing: whether activations are computed twice.
        cuts: micro-batches that each of the described ones is cut into.
        processes: that train together.
    """
    gradients = described.gradients
    samples = math.ceil(described.samples / cuts)
    carried = gradients if described.micro_batches * cuts > 1 else 0
    if engine.kind == "Replicated":
        # they stay from step to step: the buckets in which they travel
        carried = gradients
    backward = _backward(described, samples, checkpointing, carried)
    update = gradients + update_bytes(described)
    weights = described.frozen + gradients
    state = sum(state_bytes(described.optimizer, shape) for shape in described.trained)
    average = described.numbers * FLOAT * described.ema
    whole = Prediction(weights, state, average, backward)
    if engine.kind == "Sharded":
        return _sharded(described, engine, processes, whole)
    if engine.kind == "DeepSpeed":
        return _partitioned(described, engine, processes, whole)
    return replace(whole, working=max(backward, update))


def _backward(described: Description, samples: float, checkpointing: bool, carried: float) -> float:
    """The peak of the backward pass. `carried`: bytes of gradients that are there from its beginning."""
    kept = [(unit.before + (unit.inputs if checkpointing else unit.saved)).of(samples) for unit in described.units]
    again = [unit.saved.of(samples) if checkpointing else 0.0 for unit in described.units]
    own = [unit.gradients for unit in described.units]
    # from the last unit to the first: what earlier ones keep is still there, what later ones made is there already
    still = list(accumulate(kept))
    made = list(accumulate(reversed(own)))[::-1]
    moments = [
        held + recomputed + max(carried, grown) for held, recomputed, grown in zip(still, again, made, strict=True)
    ]
    # where it begins, and where what is outside of the units has got its gradients too
    moments.append(sum(kept) + described.saved_last.of(samples) + carried)
    moments.append(max(carried, described.gradients))
    return PASSING * described.largest_saved.of(samples) + max(moments)


def bytes_of_trained(numbers: int, halved: int) -> int:
    """Bytes of so many weights, or of their gradients, `halved` of them in bf16."""
    return numbers * FLOAT - halved * (FLOAT - HALF)


def state_bytes(optimizer: str, shape: Sequence[int]) -> float:
    """What `optimizer` remembers of a trained tensor of `shape`."""
    numbers = math.prod(shape)
    if optimizer == "AdamW8bit" and numbers >= SMALLEST:
        blocks = math.ceil(numbers / BLOCK)
        return 2 * blocks * (BLOCK + FLOAT)
    if optimizer == "Adafactor":
        # a mean over the last dimension and one over the last but one
        return FLOAT * (numbers / shape[-1] + numbers / shape[-2] if len(shape) > 1 else numbers)
    if optimizer == "Prodigy":
        # two moments, a sum, and the weights it began with
        return 4 * FLOAT * numbers
    return 2 * FLOAT * numbers


def update_bytes(described: Description) -> float:
    """What exists for a moment while the optimizer and the average go from tensor to tensor."""
    copies = {"AdamW": 0, "AdamW8bit": 7, "Adafactor": 3, "Prodigy": 3}[described.optimizer]
    return FLOAT * described.largest * max(copies, 2 * described.ema)


def _sharded(described: Description, engine: EngineSpec, processes: int, whole: Prediction) -> Prediction:
    """FSDP2: a share of everything that is `whole` in one process, and whole parameters where they are needed: a unit
    or two, which are about as many as ZeRO keeps."""
    share = 0 if engine.offload_parameters == "Cpu" else 1 / processes
    live = min(whole.weights, LIVE_PARAMETERS * FLOAT)
    return Prediction(
        weights=whole.weights * share + live,
        optimizer=whole.optimizer * share,
        average=whole.average * share,
        working=max(whole.working, described.numbers * FLOAT * share),
    )


def _partitioned(described: Description, engine: EngineSpec, processes: int, whole: Prediction) -> Prediction:
    """ZeRO: stage 1 cuts the optimizer's state, which is `whole` in one process, 2 the gradients too, 3 the parameters
    too. Parameters that compute are of the precision, and the optimizer keeps its own in float32."""
    stage = engine.zero_stage or ZERO_STAGE
    masters = described.numbers * FLOAT
    weights = whole.weights - masters / 2 if described.half else whole.weights
    held = 0.0 if engine.offload_optimizer != "None" else (whole.optimizer + masters) / processes
    if stage == 3:
        live = min(weights, LIVE_PARAMETERS * FLOAT)
        weights = live if engine.offload_parameters != "None" else weights / processes + live
    return Prediction(weights, held, whole.average / processes, whole.working)
