"""DeepSpeed's ZeRO: optimizer state, gradients and parameters are cut among the processes, and kept on the host's
memory or disk where they do not fit on the GPU (https://arxiv.org/abs/1910.02054, https://arxiv.org/abs/2101.06840).

Everything trained is one module, the text encoder included: DeepSpeed has one engine for one module. The weights are
loaded whole and then cut, so that nothing that loads a model need know of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import IO, Any

import torch
import torch.distributed as dist
from finetune_api.engine import EngineSpec
from finetune_api.training_run import ResolvedTraining
from torch import Tensor, nn

from finetune_trainer.data.samples import Batch
from finetune_trainer.engines.average import decay_of
from finetune_trainer.engines.base import StepResult
from finetune_trainer.engines.deepspeed_disk import check_disk, check_room, claim_disk, lend_memory, mend_gradients
from finetune_trainer.engines.deepspeed_library import load_deepspeed
from finetune_trainer.engines.deepspeed_settings import DISK_BUFFERS, bytes_on_disk, check_settings, deepspeed_config
from finetune_trainer.engines.loss_scale import ScaleState
from finetune_trainer.engines.optimizers import as_tensor, make_optimizer, rate_in_use
from finetune_trainer.engines.partitioned import MOMENTS, Kept, PartitionedEngine, buckets, check_optimizer, open_group
from finetune_trainer.engines.precision import Precision, autocast, precision_of
from finetune_trainer.engines.zero_partitions import (
    GradientPartitions,
    ParameterPartitions,
    Partitions,
    fill,
    scatter,
)
from finetune_trainer.group.team import Team
from finetune_trainer.methods.base import ParameterGroup


class DeepSpeedEngine(PartitionedEngine):
    """Implements Engine."""

    def __init__(self, engine: EngineSpec, device: torch.device, team: Team) -> None:
        super().__init__(device, team)
        self._engine = engine
        self._disk: IO[str] | None = None

    def prepare(
        self, module: nn.Module, groups: Sequence[ParameterGroup], spec: ResolvedTraining, example: Sequence[Batch]
    ) -> None:
        precision = precision_of(spec, self._device)
        check_optimizer(spec, "DeepSpeed")
        check_settings(self._engine, spec, precision, self._device.type)
        deepspeed = load_deepspeed(self._device)
        check_disk(self._engine, self._device.type)
        sizes = [value.numel() for value in module.parameters()]
        if self._engine.nvme_path is not None:
            self._disk = claim_disk(self._engine.nvme_path, self._team.rank)
            if self._team.leads:
                # nobody writes before it has shared its weights
                trained = sum(value.numel() for group in groups for value in group.parameters.values())
                check_room(self._engine.nvme_path, bytes_on_disk(self._engine, precision, trained, sum(sizes)))
            lend_memory(self._device.type)
        open_group(self._device)
        self._remember(module, groups, spec)
        largest = -(-max(sizes) // self._team.size)
        exact = {} if precision == "fp32" else {name: as_tensor(value) for name, value in self._parameters.items()}
        self._zero, *_ = deepspeed.initialize(
            model=_Autocast(module, self._device, precision),
            optimizer=make_optimizer(spec, groups, self._rates),
            config=deepspeed_config(self._engine, spec, precision, self._device.type, sum(sizes), largest),
        )
        if self._engine.offload_optimizer == "Nvme":
            mend_gradients(self._zero.optimizer.optimizer_swapper)
        whole = self._zero.zero_optimization_stage() < 3
        self._partitions: Partitions = (GradientPartitions if whole else ParameterPartitions)(self._zero.optimizer)
        # DeepSpeed rounds the weights first and makes its float32 masters of that
        for name, value in exact.items():
            self._scatter(name, value, "weights")
        self._averages = [flat.detach().clone() for flat in self._partitions.flats()] if spec.ema else []
        self._gathered = deepspeed.zero.GatheredParameters

    def step(self, batches: Sequence[Batch], factor: float) -> StepResult:
        self._partitions.rest()
        total = torch.zeros((), device=self._device)
        for group, rate in zip(self._zero.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        rate = rate_in_use(self._zero.optimizer)
        for number, batch in enumerate(batches, 1):
            # however many there are: a batch may have been cut
            self._zero.set_gradient_accumulation_boundary(number == len(batches))
            with self._seeded(batch.seed):
                loss, _ = self._zero(batch.to(self._device))
                # the processes' mean is taken, but the weights of the samples already make a sum of it
                self._zero.backward(loss * self._team.size, scale_wrt_gas=False)
            total += loss.detach()
            # updates after the last one alone
            self._zero.step()
        dist.all_reduce(total)
        norm = torch.as_tensor(self._zero.get_global_grad_norm(), dtype=torch.float32, device=self._device)
        skipped: bool = self._zero.optimizer.overflow
        if not skipped:
            self._keep_constraints("weights")
            if self._ema:
                self._update_averages()
        return StepResult(total, norm, torch.tensor(skipped, device=self._device), rate)

    def _update_averages(self) -> None:
        self._updates += 1
        share = (1 - decay_of(torch.tensor(self._updates))).float()
        for average, flat in zip(self._averages, self._partitions.flats(), strict=True):
            average.sub_(share.to(flat.device) * (average - flat.detach()))
        self._keep_constraints("average")

    @property
    def _home(self) -> torch.device:
        return self._partitions.flats()[0].device

    def _fill(self, name: str, flat: Tensor, kept: Kept) -> None:
        fill(self._partitions, self._parameters[name], flat, lambda number: self._flat(number, kept))

    def _scatter(self, name: str, value: Tensor, kept: Kept) -> None:
        scatter(self._partitions, self._parameters[name], value, lambda number: self._flat(number, kept))

    def _publish(self) -> None:
        self._partitions.publish()

    def _gather_frozen(self, shapes: Mapping[str, torch.Size]) -> Iterator[tuple[str, Tensor]]:
        most = DISK_BUFFERS if self._engine.offload_parameters == "Nvme" else None
        for bucket in buckets({key: shape.numel() for key, shape in shapes.items()}, most):
            parameters = {key: self._bare.parameters[key] for key in bucket}
            # before stage 3 every process has them
            cut = [each for each in parameters.values() if hasattr(each, "ds_id")]
            with self._gathered(cut) if cut else nullcontext():
                yield from ((key, value.detach().float()) for key, value in parameters.items())

    def _steps(self) -> float | None:
        state = self._optimizer_state(0)
        return float(state["step"]) if state else None

    def _set_steps(self, steps: float | None) -> None:
        for number, flat in enumerate(self._partitions.flats()):
            self._partitions.forget(number)
            if steps is None:
                continue
            with self._partitions.resident(number, changes=True):
                state = self._optimizer_state(number)
                # where AdamW's fused kernel wants it
                state["step"] = torch.tensor(steps, device=flat.device)
                state.update({kept: torch.zeros_like(flat.detach()) for kept in MOMENTS})

    def _scale(self) -> ScaleState | None:
        scaler = self._zero.optimizer.loss_scaler
        if not scaler.dynamic:
            return None
        return ScaleState(scaler.cur_scale, (scaler.cur_iter - scaler.last_overflow_iter - 1) % scaler.scale_window)

    def _set_scale(self, state: ScaleState) -> None:
        scaler = self._zero.optimizer.loss_scaler
        scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter = state.value, state.steps, -1

    def _close(self) -> None:
        self._partitions.rest()
        self._zero.destroy()
        del self._zero, self._partitions, self._averages
        if self._disk is not None:
            self._disk.close()

    def _flat(self, number: int, kept: Kept) -> Tensor:
        if kept == "average":
            return self._averages[number]
        if kept == "weights":
            return self._partitions.flats()[number]
        moment: Tensor = self._optimizer_state(number)[kept]
        return moment

    def _optimizer_state(self, number: int) -> dict[str, Any]:
        state: dict[str, Any] = self._zero.optimizer.optimizer.state[self._partitions.flats()[number]]
        return state


class _Autocast(nn.Module):
    """Computes in lower precision where torch holds that to be safe. DeepSpeed switches off what is switched on outside
    of its engine, and by itself would compute all of it in the weights' precision, the loss included."""

    def __init__(self, module: nn.Module, device: torch.device, precision: Precision) -> None:
        super().__init__()
        self.module, self._device, self._precision = module, device, precision

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        with autocast(self._precision, self._device):
            result: tuple[Tensor, Tensor] = self.module(batch)
            return result
