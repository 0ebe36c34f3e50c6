"""What is known before the first step of a large training on a large GPU: tests change what they are about."""

from __future__ import annotations

from finetune_api.engine import EngineKind, EngineSpec
from finetune_trainer.planning.memory import Bytes, Description, Unit
from finetune_trainer.planning.plans import Facts

GIB = 2**30
ALL: frozenset[EngineKind] = frozenset(("Eager", "Captured", "Compiled", "Replicated", "Sharded", "DeepSpeed"))
WHOLE_MODEL = Description(
    frozen=GIB,
    trained=((860_000_000,),),
    units=tuple(Unit(Bytes(0, 0), Bytes(0, GIB / 4), Bytes(0, GIB / 64), 107_500_000) for _ in range(8)),
    saved_last=Bytes(0, 0),
    largest_saved=Bytes(0, GIB / 32),
    samples=4,
    micro_batches=1,
    optimizer="AdamW",
    ema=False,
)
"""Of 3.2 GiB of weights and as much each of gradients and two moments, 2 GiB of activations a sample: 19.3 GiB as it
is, 14.3 GiB at the least where nothing is moved to the host."""
GPU = Facts(
    asked=EngineSpec(),
    available=ALL,
    device="cuda",
    checkpointing=False,
    steps=500,
    processes=1,
    samples=4,
    numbers=860_000_000,
    memory=80 * GIB,
    described=WHOLE_MODEL,
)
