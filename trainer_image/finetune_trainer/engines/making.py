"""The one place where a kind of engine becomes one. Engines are imported when they are made: some of them take long."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from finetune_api.engine import ONE_PROCESS, EngineKind, EngineSpec

from finetune_trainer.engines.base import Engine
from finetune_trainer.engines.cutting import CuttingEngine
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.group.team import ALONE, Team


@dataclass(frozen=True)
class Place:
    """Where an engine works."""

    device: torch.device
    team: Team = ALONE
    cache: Path | None = None
    """What is kept for other trainings; None: nothing."""


def _eager(spec: EngineSpec, place: Place) -> Engine:
    return EagerEngine(place.device)


def _captured(spec: EngineSpec, place: Place) -> Engine:
    from finetune_trainer.engines.captured import CapturedEngine

    return CapturedEngine(place.device)


def _compiled(spec: EngineSpec, place: Place) -> Engine:
    from finetune_trainer.engines.compiled import CompiledEngine

    return CompiledEngine(place.device, place.cache)


def _replicated(spec: EngineSpec, place: Place) -> Engine:
    if place.team.size == 1:
        # the only copy
        return EagerEngine(place.device)
    from finetune_trainer.engines.replicated import ReplicatedEngine

    return ReplicatedEngine(place.device, place.team)


def _sharded(spec: EngineSpec, place: Place) -> Engine:
    from finetune_trainer.engines.sharded import ShardedEngine

    return ShardedEngine(spec, place.device, place.team)


def _deepspeed(spec: EngineSpec, place: Place) -> Engine:
    from finetune_trainer.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(spec, place.device, place.team)


KINDS: Mapping[EngineKind, Callable[[EngineSpec, Place], Engine]] = {
    "Eager": _eager,
    "Captured": _captured,
    "Compiled": _compiled,
    "Replicated": _replicated,
    "Sharded": _sharded,
    "DeepSpeed": _deepspeed,
}
"""All that finetune_api.engine names, but for Auto."""
OFFLOADING: tuple[EngineKind, ...] = ("DeepSpeed", "Sharded")


def make_engine(
    spec: EngineSpec, device: torch.device, team: Team = ALONE, cuts: int = 1, cache: Path | None = None
) -> Engine:
    """The engine for `spec` in the group `team`. Auto, which planning.plans.choose decides on, is here the plainest one
    for so many processes.

    Args:
        cuts: pieces that it gets each micro-batch in.
        cache: what engines keep for other trainings; None: nothing.

    Raises:
        ConfigurationError: the engine does not work in a group, or with offload.
    """
    kind = spec.kind
    if kind == "Auto":
        kind = "Eager" if team.size == 1 else "Replicated"
    if kind in ONE_PROCESS and team.size > 1:
        raise ConfigurationError(
            f"spec.engine.kind is {kind}, which works in one process, but there are {team.size}; use Auto, or remove "
            "engine.nodes and engine.processesPerNode"
        )
    if kind not in OFFLOADING and (spec.offload_optimizer, spec.offload_parameters) != ("None", "None"):
        raise ConfigurationError(
            f"spec.engine.kind is {kind}, which keeps everything on its device; use {' or '.join(OFFLOADING)}, or "
            "remove offloadOptimizer and offloadParameters"
        )
    engine = KINDS[kind](spec, Place(device, team, cache))
    return CuttingEngine(engine, cuts) if cuts > 1 else engine
