"""What engines share whose processes each hold a part of the weights: putting them together for checkpoints, drawing
and export, and taking them apart again."""

from __future__ import annotations

import atexit
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from finetune_api.training_run import ResolvedTraining
from torch import Tensor, nn

from finetune_trainer.engines.average import AverageState
from finetune_trainer.engines.bare_module import BareModule
from finetune_trainer.engines.base import EngineState
from finetune_trainer.engines.eager import EagerEngine
from finetune_trainer.engines.loss_scale import ScaleState
from finetune_trainer.engines.optimizers import as_tensor, rates_of
from finetune_trainer.engines.precision import precision_of
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.group.team import Team
from finetune_trainer.methods.base import ParameterGroup

Kept = Literal["weights", "exp_avg", "exp_avg_sq", "average"]
"""What there is of each trained parameter, float32: itself, AdamW's moments, its average."""
BUCKET = 16_000_000
"""Numbers that travel together: 64 MB."""
MOMENTS: tuple[Kept, ...] = ("exp_avg", "exp_avg_sq")


class PartitionedEngine(EagerEngine):
    """Implements Engine but for `prepare`, `step` and what is abstract here. AdamW only."""

    def __init__(self, device: torch.device, team: Team) -> None:
        super().__init__(device)
        self._team = team

    @property
    @abstractmethod
    def _home(self) -> torch.device:
        """Where the shares are."""

    @abstractmethod
    def _fill(self, name: str, flat: Tensor, kept: Kept) -> None:
        """Writes this process's share into `flat`: zeros as long as the flattened parameter, float32."""

    @abstractmethod
    def _scatter(self, name: str, value: Tensor, kept: Kept) -> None:
        """Puts this process's share of `value` in its place."""

    @abstractmethod
    def _publish(self) -> None:
        """Weights were scattered: computes with them from now on. All processes at once."""

    @abstractmethod
    def _gather_frozen(self, shapes: Mapping[str, torch.Size]) -> Iterator[tuple[str, Tensor]]:
        """The parameters that are not trained, whole, float32; `shapes` by their names in the module. All processes at
        once."""

    @abstractmethod
    def _steps(self) -> float | None:
        """Steps that the optimizer has done; None before the first, when it has no moments."""

    @abstractmethod
    def _set_steps(self, steps: float | None) -> None:
        """From now on the optimizer has done so many, with moments of zeros; None: it is as new."""

    @abstractmethod
    def _scale(self) -> ScaleState | None:
        """With fp16."""

    @abstractmethod
    def _set_scale(self, state: ScaleState) -> None:
        """With fp16: puts `state` back."""

    @abstractmethod
    def _close(self) -> None:
        """No more steps: lets go of what the processes hold."""

    def state(self) -> EngineState:
        """Rank 0's is whole; what the others return is empty."""
        steps = self._steps()
        weights = self._collected("weights")
        moments = {} if steps is None else {kept: self._collected(kept) for kept in MOMENTS}
        optimizer = {f"{name}/{kept}": value for kept, values in moments.items() for name, value in values.items()}
        if steps is not None:
            optimizer |= {f"{name}/step": torch.tensor(steps) for name in weights}
        average = AverageState(self._collected("average"), self._updates) if self._ema else None
        return EngineState(weights, optimizer, average, self._scale())

    @torch.no_grad()
    def load(self, state: EngineState | None) -> None:
        if self._team.leads:
            self._check(state)
        told = None if state is None else _told(state)
        steps, self._updates, scale = self._team.share(told)
        if scale is not None:
            self._set_scale(scale)
        given = state if state is not None else EngineState({}, {})
        self._spread(given.weights, "weights")
        self._publish()
        self._set_steps(steps)
        if steps is not None:
            for kept in MOMENTS:
                self._spread({name: given.optimizer.get(f"{name}/{kept}") for name in given.weights}, kept)
        if self._ema:
            self._spread({} if given.average is None else given.average.weights, "average")

    @contextmanager
    def averaged(self) -> Iterator[None]:
        with self._bare.filled(self._whole("average" if self._ema else "weights")):
            self._is_whole = True
            try:
                yield
            finally:
                self._is_whole = False

    def weights(self) -> dict[str, Tensor]:
        if self._is_whole:
            return {name: as_tensor(value) for name, value in self._parameters.items()}
        return self._collected("weights")

    @torch.no_grad()
    def settle(self, weights: Mapping[str, Tensor] | None) -> None:
        given = self._team.share(weights is not None)
        whole = self._whole("average" if self._ema and not given else "weights")
        if given:
            for key, name in self._names.items():
                value = whole[key]
                if weights is not None:
                    value.copy_(weights[name])
                dist.broadcast(value, src=0)
        self._close()
        self._bare.fill(whole)
        self._is_whole = True

    def _remember(self, module: nn.Module, groups: Sequence[ParameterGroup], spec: ResolvedTraining) -> None:
        """What is asked of `module` before it is taken apart."""
        for parameter in module.parameters():
            # nobody cuts channels last, and DeepSpeed looks at the strides of sides of 1 too
            parameter.data = parameter.data.contiguous().view(-1).view(parameter.shape)
        self._groups = tuple(groups)
        self._parameters = {name: value for group in groups for name, value in group.parameters.items()}
        self._shapes = {name: value.shape for name, value in self._parameters.items()}
        self._bare = BareModule(module)
        trained = {id(value): name for name, value in self._parameters.items()}
        self._names = {key: trained[id(v)] for key, v in self._bare.parameters.items() if id(v) in trained}
        self._rates = rates_of(spec, groups)
        self._max_grad_norm = spec.max_grad_norm
        self._precision = precision_of(spec, self._device)
        self._ema, self._updates, self._is_whole = spec.ema, 0, False

    @torch.no_grad()
    def _keep_constraints(self, kept: Kept) -> None:
        """As EagerEngine._constrain, for weights or averages; every process comes to the same."""
        changed = False
        for group in self._groups:
            if group.constraint is None:
                continue
            for name, value in self._gather(group.parameters, kept):
                group.constraint(value)
                self._scatter(name, value, kept)
                changed = True
        if changed and kept == "weights":
            self._publish()

    def _gather(self, names: Iterable[str], kept: Kept) -> Iterator[tuple[str, Tensor]]:
        """Trained parameters, whole, float32, in memory that is theirs until the next. All processes at once."""
        shapes = {name: self._shapes[name] for name in names}
        return joined(shapes, self._home, lambda name, flat: self._fill(name, flat, kept))

    def _collected(self, kept: Kept) -> dict[str, Tensor]:
        """CPU tensors in rank 0; no other process ever holds all of them."""
        return {name: as_tensor(value) for name, value in self._gather(self._shapes, kept) if self._team.leads}

    def _spread(self, values: Mapping[str, Tensor | None], kept: Kept) -> None:
        """Rank 0's `values`, to where they belong. What it does not have is zeros: a parameter that an optimizer has
        not met yet has no moments."""

        def fill(name: str, flat: Tensor) -> None:
            value = values.get(name)
            if value is not None:
                flat.copy_(value.reshape(-1))

        for name, value in joined(self._shapes, self._home, fill):
            self._scatter(name, value, kept)

    def _whole(self, kept: Kept) -> dict[str, Tensor]:
        """All parameters of the module on the device, float32."""
        keys = {name: key for key, name in self._names.items()}
        shapes = {key: shape for key, shape in self._bare.shapes.items() if key not in self._names}
        whole = {keys[name]: value.to(self._device, copy=True) for name, value in self._gather(keys, kept)}
        return whole | {key: value.to(self._device, copy=True) for key, value in self._gather_frozen(shapes)}

    def _check(self, state: EngineState | None) -> None:
        if state is None:
            raise ValueError("rank 0 has nobody to get its state from")
        if state.weights.keys() != self._parameters.keys():
            strange = sorted(state.weights.keys() ^ self._parameters.keys())[:3]
            raise ValueError(f"the state belongs to other parameters: {', '.join(strange)} …")
        if (state.average is None) != (not self._ema):
            raise ValueError("the state belongs to another training.ema")
        if (state.loss_scale is None) != (self._precision != "fp16"):
            raise ValueError("the state belongs to another training.precision")


@torch.no_grad()
def joined(
    shapes: Mapping[str, torch.Size], device: torch.device, fill: Callable[[str, Tensor], None]
) -> Iterator[tuple[str, Tensor]]:
    """Tensors put together from what all processes have of them, float32 on `device`. All processes at once. Many
    travel together: models have hundreds of parameters of a few numbers.

    Args:
        fill: writes this process's share into zeros as long as the flattened tensor.
    """
    for bucket in buckets({name: shape.numel() for name, shape in shapes.items()}):
        flat = torch.zeros(sum(shapes[name].numel() for name in bucket), device=device)
        parts = flat.split([shapes[name].numel() for name in bucket])
        for name, part in zip(bucket, parts, strict=True):
            fill(name, part)
        # everybody adds zeros to what is not theirs
        dist.all_reduce(flat)
        yield from ((name, part.view(shapes[name])) for name, part in zip(bucket, parts, strict=True))


def buckets(sizes: Mapping[str, int], most: int | None = None) -> Iterator[list[str]]:
    """Names of what travels together, in order: at most BUCKET numbers, or one that has more; at most `most` names."""
    bucket: list[str] = []
    numbers = 0
    for name, size in sizes.items():
        if bucket and (numbers + size > BUCKET or len(bucket) == most):
            yield bucket
            bucket, numbers = [], 0
        bucket.append(name)
        numbers += size
    if bucket:
        yield bucket


def open_group(device: torch.device) -> None:
    """A group of this process alone, where there is none: what works in groups cannot do without."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        atexit.register(dist.destroy_process_group)


def check_optimizer(spec: ResolvedTraining, kind: str) -> None:
    """Raises ConfigurationError for an optimizer that looks at whole parameters, or at all of them; `kind` is the
    engine's, which has neither."""
    if spec.optimizer.name != "AdamW":
        raise ConfigurationError(
            f"training.optimizer.name is {spec.optimizer.name}, but with engine.kind {kind} each process updates its "
            "pieces of the weights alone, and that optimizer would need to see more; use AdamW, or another engine.kind"
        )


def _told(state: EngineState) -> tuple[float | None, int, ScaleState | None]:
    """Steps of the optimizer, None before the first; updates of the average; the loss scale."""
    steps = [float(value) for name, value in state.optimizer.items() if name.endswith("/step")]
    return max(steps, default=None), 0 if state.average is None else state.average.updates, state.loss_scale
