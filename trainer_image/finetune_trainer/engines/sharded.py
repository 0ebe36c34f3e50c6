"""torch's FSDP2: each process holds its rows of every parameter, and the whole of a block only while it computes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from finetune_api.engine import EngineSpec
from finetune_api.training_run import ResolvedTraining
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from finetune_trainer.data.samples import Batch
from finetune_trainer.engines.average import decay_of
from finetune_trainer.engines.base import StepResult
from finetune_trainer.engines.loss_scale import LossScale, ScaleState
from finetune_trainer.engines.optimizers import make_optimizer, step_unless
from finetune_trainer.engines.partitioned import MOMENTS, Kept, PartitionedEngine, check_optimizer, joined, open_group
from finetune_trainer.group.team import Team
from finetune_trainer.methods.base import ParameterGroup


class ShardedEngine(PartitionedEngine):
    """Implements Engine."""

    def __init__(self, engine: EngineSpec, device: torch.device, team: Team) -> None:
        super().__init__(device, team)
        self._offload = engine.offload_parameters == "Cpu"

    def prepare(
        self, module: nn.Module, groups: Sequence[ParameterGroup], spec: ResolvedTraining, example: Sequence[Batch]
    ) -> None:
        check_optimizer(spec, "Sharded")
        open_group(self._device)
        self._remember(module, groups, spec)
        shard(module, self._device, self._offload)
        self._module = module
        self._shards = dict(module.named_parameters())
        self._bare.release()
        trained = {name: self._shards[key] for key, name in self._names.items()}
        of_groups = [replace(one, parameters={name: trained[name] for name in one.parameters}) for one in self._groups]
        self._optimizer = make_optimizer(spec, of_groups, self._rates)
        self._trained = {name: trained[name] for name in self._parameters}
        self._averages = {name: _local(value).clone() for name, value in self._trained.items()} if spec.ema else {}
        self._loss_scale = LossScale(self._device) if self._precision == "fp16" else None

    def step(self, batches: Sequence[Batch], factor: float) -> StepResult:
        rate = self._set_rates(factor)
        total = torch.zeros((), device=self._device)
        for batch in batches:
            # the processes' mean is taken, but the weights of the samples already make a sum of it
            total += self._backward(self._module, batch, self._team.size)
        dist.all_reduce(total)
        norm = self._clip()
        skipped = ~(torch.isfinite(total) & torch.isfinite(norm))
        step_unless(self._optimizer, skipped.to(self._home))
        self._optimizer.zero_grad(set_to_none=True)
        if self._loss_scale is not None:
            self._loss_scale.update(skipped)
        # what follows is done by all processes together, or by none
        if not bool(skipped):
            self._keep_constraints("weights")
            if self._ema:
                self._update_averages()
        return StepResult(total, norm, skipped, rate)

    @property
    def _home(self) -> torch.device:
        """Where the shards are."""
        return torch.device("cpu") if self._offload else self._device

    @torch.no_grad()
    def _clip(self) -> Tensor:
        """Scales the gradients to the longest that they may be; their length before, a scalar on the device."""
        gradients = [_local(value.grad) for value in self._trained.values() if value.grad is not None]
        if self._loss_scale is not None:
            torch._foreach_mul_(gradients, self._loss_scale.value.reciprocal().to(self._home))
        square = torch.stack(torch._foreach_norm(gradients)).square().sum()
        dist.all_reduce(square)
        norm = square.sqrt()
        torch._foreach_mul_(gradients, (self._max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm.to(self._device)

    @torch.no_grad()
    def _update_averages(self) -> None:
        self._updates += 1
        share = (1 - decay_of(torch.tensor(self._updates))).float().to(self._home)
        for name, average in self._averages.items():
            average.sub_(share * (average - _local(self._trained[name])))
        self._keep_constraints("average")

    @torch.no_grad()
    def _fill(self, name: str, flat: Tensor, kept: Kept) -> None:
        own = self._own(name, kept)
        _rows(flat.view(self._shapes[name]), len(own)).copy_(own)

    @torch.no_grad()
    def _scatter(self, name: str, value: Tensor, kept: Kept) -> None:
        own = self._own(name, kept)
        own.copy_(_rows(value, len(own)))

    def _publish(self) -> None:
        """The next forward pass gathers them."""

    def _gather_frozen(self, shapes: Mapping[str, torch.Size]) -> Iterator[tuple[str, Tensor]]:
        def fill(key: str, flat: Tensor) -> None:
            own = _local(self._shards[key])
            _rows(flat.view(shapes[key]), len(own)).copy_(own)

        return joined(shapes, self._home, fill)

    def _steps(self) -> float | None:
        steps = [float(state["step"]) for state in self._optimizer.state.values()]
        return max(steps, default=None)

    def _set_steps(self, steps: float | None) -> None:
        self._optimizer.state.clear()
        if steps is not None:
            for value in self._trained.values():
                self._optimizer.state[value] = {
                    "step": torch.tensor(steps, device=self._home),
                    **{kept: torch.zeros_like(value.detach()) for kept in MOMENTS},
                }

    def _scale(self) -> ScaleState | None:
        return None if self._loss_scale is None else self._loss_scale.state()

    def _set_scale(self, state: ScaleState) -> None:
        if self._loss_scale is not None:
            self._loss_scale.load(state)

    def _close(self) -> None:
        del self._shards, self._trained, self._averages, self._optimizer

    def _own(self, name: str, kept: Kept) -> Tensor:
        """This process's rows."""
        if kept == "average":
            return self._averages[name]
        shard = self._trained[name]
        return _local(shard if kept == "weights" else self._optimizer.state[shard][kept])


def shard(module: nn.Module, device: torch.device, offload: bool) -> None:
    """Cuts the parameters of `module` among all processes: each block for itself, so that no more than one or two are
    whole at a time, and what lies between the blocks together."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy()
    for block in blocks(module):
        fully_shard(block, mesh=mesh, offload_policy=policy)
    fully_shard(module, mesh=mesh, offload_policy=policy)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What a model has in lists: the blocks of a UNet, the layers of a text encoder. Other children may be used without
    being called, as a text encoder's last norm is, and are not for themselves."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (each for each in child if any(True for _ in each.parameters()))
        else:
            yield from blocks(child)


def _local(value: Tensor) -> Tensor:
    """The rows of a DTensor that are here, sharing its memory."""
    assert isinstance(value, DTensor), "a shard"
    local: Tensor = value.detach().to_local()
    return local


def _first_row(count: int, rank: int) -> int:
    """Rows are cut as torch.chunk cuts them: the last processes may have fewer, or none."""
    return min(-(-count // dist.get_world_size()) * rank, count)


def _rows(value: Tensor, count: int) -> Tensor:
    return value.narrow(0, _first_row(len(value), dist.get_rank()), count)
