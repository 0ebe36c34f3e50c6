"""The one place where a kind of engine becomes one. Engines are imported when they are made: some of them take long."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from finetune_api.engine import ONE_PROCESS, EngineKind, EngineSpec

from finetune_trainer.engines.base import Engine
from finetune_trainer.engines.cutting import CuttingEngine
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.group.team import ALONE, Team


def _eager(spec: EngineSpec, device: torch.device, team: Team) -> Engine:
    return EagerEngine(device)


def _captured(spec: EngineSpec, device: torch.device, team: Team) -> Engine:
    from finetune_trainer.engines.captured import CapturedEngine

    return CapturedEngine(device)


def _replicated(spec: EngineSpec, device: torch.device, team: Team) -> Engine:
    if team.size == 1:
        # the only copy
        return EagerEngine(device)
    from finetune_trainer.engines.replicated import ReplicatedEngine

    return ReplicatedEngine(device, team)


def _sharded(spec: EngineSpec, device: torch.device, team: Team) -> Engine:
    from finetune_trainer.engines.sharded import ShardedEngine

    return ShardedEngine(spec, device, team)


def _deepspeed(spec: EngineSpec, device: torch.device, team: Team) -> Engine:
    from finetune_trainer.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(spec, device, team)


KINDS: Mapping[EngineKind, Callable[[EngineSpec, torch.device, Team], Engine]] = {
    "Eager": _eager,
    "Captured": _captured,
    "Replicated": _replicated,
    "Sharded": _sharded,
    "DeepSpeed": _deepspeed,
}
"""Those that there are. finetune_api.engine.CARRIED_OUT tells the API server."""
OFFLOADING: tuple[EngineKind, ...] = ("DeepSpeed", "Sharded")


def make_engine(spec: EngineSpec, device: torch.device, team: Team = ALONE, cuts: int = 1) -> Engine:
    """The engine for `spec` in the group `team`. Auto, which planning.choose decides on, is here the plainest one for
    so many processes.

    Args:
        cuts: pieces that it gets each micro-batch in.

    Raises:
        ConfigurationError: there is no such engine, or it works neither in a group nor with offload.
    """
    kind = spec.kind
    if kind == "Auto":
        kind = "Eager" if team.size == 1 else "Replicated"
    if kind not in KINDS:
        raise ConfigurationError(
            f"spec.engine.kind is {kind}, which this trainer does not have; use Auto, or one of {', '.join(KINDS)}"
        )
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
    engine = KINDS[kind](spec, device, team)
    return CuttingEngine(engine, cuts) if cuts > 1 else engine
