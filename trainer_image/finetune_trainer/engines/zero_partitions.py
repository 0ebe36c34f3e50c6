"""What ZeRO keeps of a parameter in each process: pieces of flat float32 partitions, and how to put them together.

DeepSpeed has functions of its own for this, `safe_get_full_fp32_param` and its like; those for stage 3 cannot set a
parameter whose size the processes do not divide, and none of them reaches an average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """This process's share of a parameter."""

    partition: int
    """Number of the flat partition."""
    at: int
    """Where it begins in the partition."""
    start: int
    """Where it begins in the flattened parameter."""
    count: int
    """Its length."""


class Partitions(Protocol):
    """The master weights of this process: flat float32 tensors that the optimizer updates."""

    def flats(self) -> Sequence[Tensor]:
        """Each with its entry in the optimizer's state. Elsewhere than in memory they are empty."""

    def piece(self, parameter: nn.Parameter) -> Piece | None:
        """None: other processes have all of it."""

    @contextmanager
    def resident(self, partition: int, changes: bool) -> Iterator[None]:
        """Within, the partition and its state are in memory; what `changes` is written back, `rest` at the latest."""

    def rest(self) -> None:
        """All are where they belong. To be called before DeepSpeed goes on by itself."""

    def forget(self, partition: int) -> None:
        """What the optimizer knows of the partition, which is as new to it then."""

    def publish(self) -> None:
        """The master weights were changed: all processes compute with the new ones."""


class GradientPartitions:
    """Implements Partitions for stages 1 and 2."""

    def __init__(self, optimizer: Any) -> None:  # noqa: ANN401  # DeepSpeed has no types
        self._optimizer = optimizer

    def flats(self) -> Sequence[Tensor]:
        flats: Sequence[Tensor] = self._optimizer.single_partition_of_fp32_groups
        return flats

    def piece(self, parameter: nn.Parameter) -> Piece | None:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed's own
        if mapping is None:
            return None
        own, whole = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
        return Piece(mapping.param_group_index, own.start, whole.start, own.numel)

    @contextmanager
    def resident(self, partition: int, changes: bool) -> Iterator[None]:
        yield

    def rest(self) -> None:
        pass

    def forget(self, partition: int) -> None:
        self._optimizer.optimizer.state[self.flats()[partition]].clear()

    def publish(self) -> None:
        self._optimizer.update_lp_params()


class ParameterPartitions:
    """Implements Partitions for stage 3."""

    def __init__(self, optimizer: Any) -> None:  # noqa: ANN401  # DeepSpeed has no types
        self._optimizer = optimizer
        self._here: int | None = None
        self._changed = False

    def flats(self) -> Sequence[Tensor]:
        flats: Sequence[Tensor] = self._optimizer.fp32_partitioned_groups_flat
        return flats

    def piece(self, parameter: nn.Parameter) -> Piece | None:
        optimizer, owned = self._optimizer, parameter
        partition, at, length = optimizer.grad_position[optimizer.get_param_id(owned)]
        start = length * dist.get_rank()
        count = min(length, owned.ds_numel - start)  # type: ignore[attr-defined]  # DeepSpeed's own
        # the last processes may have nothing but padding
        return Piece(partition, at, start, count) if count > 0 else None

    @contextmanager
    def resident(self, partition: int, changes: bool) -> Iterator[None]:
        if self._optimizer._swappable_optimizer_subgroup(partition):
            # stays for the next parameter, which most often is in it too: reading it takes as long for one as for all
            if self._here != partition:
                self.rest()
                self._optimizer._optimizer_states_and_gradient_swap_in(partition)
                self._here = partition
            self._changed |= changes
        yield

    def rest(self) -> None:
        if self._here is None:
            return
        if self._changed:
            self._optimizer._optimizer_states_and_gradient_swap_out(self._here)
        else:
            self._optimizer._release_swap_buffers(self._here)
        self._here, self._changed = None, False

    def forget(self, partition: int) -> None:
        self.rest()
        flat = self.flats()[partition]
        self._optimizer.optimizer.state[flat].clear()
        if self._optimizer._swappable_optimizer_subgroup(partition):
            kept = self._optimizer.optimizer_swapper.swap_params_info[flat.ds_id]  # type: ignore[attr-defined]  # DeepSpeed's own
            kept.tensors, kept.has_state_tensors = kept.tensors[:1], False

    def publish(self) -> None:
        optimizer = self._optimizer
        optimizer._partition_all_parameters()
        for partition in range(len(optimizer.fp16_groups)):
            with self.resident(partition, changes=False):
                optimizer._reassign_or_swap_out_partitioned_parameters(partition)
        # small parameters are whole in all processes
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


Source = Callable[[int], Tensor]
"""Number of a partition → a flat tensor of its layout: the master weights, a moment, an average."""


@torch.no_grad()
def fill(partitions: Partitions, parameter: nn.Parameter, flat: Tensor, source: Source) -> None:
    """Writes this process's share of what `source` has of `parameter` into `flat`, as long as the parameter."""
    piece = partitions.piece(parameter)
    if piece is not None:
        with partitions.resident(piece.partition, changes=False):
            own = source(piece.partition).narrow(0, piece.at, piece.count)
            flat[piece.start : piece.start + piece.count].copy_(own)


@torch.no_grad()
def scatter(partitions: Partitions, parameter: nn.Parameter, value: Tensor, source: Source) -> None:
    """Puts this process's share of `value` where `fill` would find it."""
    piece = partitions.piece(parameter)
    if piece is not None:
        with partitions.resident(piece.partition, changes=True):
            own = source(piece.partition).narrow(0, piece.at, piece.count)
            own.copy_(value.reshape(-1)[piece.start : piece.start + piece.count])
