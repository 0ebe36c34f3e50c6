"""A copy of the module in each process of a group; gradients are summed between them while they are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
from finetune_api.training_run import ResolvedTraining
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from finetune_trainer.data.samples import Batch
from finetune_trainer.engines.base import EngineState
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.engines.optimizers import OWN_NUMBERS
from finetune_trainer.group.team import Team
from finetune_trainer.methods.base import ParameterGroup


class ReplicatedEngine(EagerEngine):
    """Implements Engine with torch's DistributedDataParallel. All processes start from the same weights and add up
    the same gradients, so that their weights stay the same to the bit."""

    def __init__(self, device: torch.device, team: Team) -> None:
        super().__init__(device)
        self._team = team

    def prepare(
        self, module: nn.Module, groups: Sequence[ParameterGroup], spec: ResolvedTraining, example: Sequence[Batch]
    ) -> None:
        super().prepare(module, groups, spec, example)
        self._replica = DistributedDataParallel(
            module,
            # every process has read the same files and draws the same first values
            init_sync=False,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
            # Otherwise the buckets are cut anew after the first step since the start, and with three processes or
            # more the sums of a resumed training would be rounded another way. A GPU makes no such promise.
            find_unused_parameters=self._device.type == "cpu",
        )

    def _gradients(self, batches: Sequence[Batch]) -> Tensor:
        total = torch.zeros((), device=self._device)
        for number, batch in enumerate(batches, 1):
            # gradients travel once, with the last micro-batch
            with nullcontext() if number == len(batches) else self._replica.no_sync():
                # the replicas' mean is taken, but the weights of the samples already make a sum of it
                total += self._backward(self._replica, batch, self._team.size)
        dist.all_reduce(total)
        return total

    def state(self) -> EngineState:
        # all have the same; rank 0's is what counts
        return super().state() if self._team.leads else EngineState({}, {})

    @torch.no_grad()
    def load(self, state: EngineState | None) -> None:
        """Tensor by tensor: no process but rank 0 ever holds a second copy."""
        if self._team.leads:
            super().load(state)
        for parameter in self._parameters.values():
            self._from_leader(parameter)
        self._load_optimizer()
        if self._loss_scale is not None:
            state_of = self._loss_scale.state() if self._team.leads else None
            self._loss_scale.load(self._team.share(state_of))
        if self._average is not None:
            self._from_leader(self._average.updates)
            for value in self._average.weights.values():
                self._from_leader(value)

    @torch.no_grad()
    def settle(self, weights: Mapping[str, Tensor] | None) -> None:
        super().settle(weights)
        for parameter in self._parameters.values():
            self._from_leader(parameter)

    def _load_optimizer(self) -> None:
        """Numbers travel with the description of the tensors, and these one by one."""
        own = [self._optimizer.state[value] for value in self._parameters.values()]
        numbers = [{key: group[key] for key in OWN_NUMBERS if key in group} for group in self._optimizer.param_groups]
        told = [
            {key: (v.shape, v.dtype, v.device.type) if isinstance(v, Tensor) else v for key, v in one.items()}
            for one in own
        ]
        told, numbers = self._team.share((told, numbers) if self._team.leads else None)
        for group, values in zip(self._optimizer.param_groups, numbers, strict=True):
            group.update(values)
        for parameter, mine, leaders in zip(self._parameters.values(), own, told, strict=True):
            for key, description in leaders.items():
                if not isinstance(description, tuple):
                    mine[key] = description
                    continue
                if not self._team.leads:
                    shape, dtype, device = description
                    mine[key] = (
                        torch.empty_like(parameter, dtype=dtype, memory_format=torch.preserve_format)
                        if shape == parameter.shape
                        else torch.empty(shape, dtype=dtype, device=device)
                    )
                self._from_leader(mine[key])

    def _from_leader(self, tensor: Tensor) -> None:
        value = tensor.contiguous()
        dist.broadcast(value, src=0)
        if value is not tensor:
            tensor.copy_(value)
