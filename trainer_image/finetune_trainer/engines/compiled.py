"""The captured engine with a denoiser that torch.compile has made faster: for trainings so long that the minutes which
that takes are won back. Whether they are, planning decides.

What was compiled is kept in the cache, and another training of the same model with the same settings takes seconds
where the first one took minutes. It is code, and is run: who may write to the cache may decide what trainings do.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch._dynamo.config  # torch imports it when it is first needed
from finetune_api.training_run import ResolvedTraining
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from finetune_trainer.data.disk_cache import DiskCache
from finetune_trainer.data.samples import Batch
from finetune_trainer.engines.captured import CapturedEngine
from finetune_trainer.engines.static_batches import Signature, signature_of
from finetune_trainer.methods.base import ParameterGroup

log = logging.getLogger("finetune")

MOST_SHAPES = 64
"""Of batches that one denoiser is compiled for; torch would give up after eight, and say nothing."""


class CompiledEngine(CapturedEngine):
    """Implements Engine. Sums may be rounded another way than the reference's. Where torch cannot compile the model the
    steps are captured as they are, and the log says so."""

    def __init__(self, device: torch.device, cache: Path | None, backend: str = "inductor") -> None:
        """
        Args:
            cache: where other trainings keep what they compiled; None: nowhere.
            backend: torch's compiler.
        """
        super().__init__(device)
        self._cache = DiskCache(cache / "compiled") if cache is not None else None
        self._backend = backend

    def prepare(
        self, module: nn.Module, groups: Sequence[ParameterGroup], spec: ResolvedTraining, example: Sequence[Batch]
    ) -> None:
        super().prepare(module, groups, spec, example)
        torch._dynamo.config.recompile_limit = MOST_SHAPES
        self._part = denoiser_of(module)
        self._compiled: Callable[..., object] | None = torch.compile(
            self._part.forward, backend=self._backend, dynamic=False
        )
        self._kind = _kind_of(self._part, self._device, self._precision)

    def _record(self, batch: Batch) -> None:
        name = _digest(self._kind, signature_of(batch))
        self._fetch(name)
        if self._compiled is not None and not self._is_kept(name):
            log.info("engine: torch compiles the model for a shape of batches, which takes minutes")
        try:
            super()._record(batch)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split("\n\n")[0].split())
            log.warning("engine: torch cannot compile this model; steps are captured as they are (%s)", reason)
            self._compiled = None
            self._recordings.clear()
            super()._record(batch)
            return
        self._keep(name)

    def _pass(self, module: nn.Module, batch: Batch, scale: float) -> Tensor:
        with self._fast():
            return super()._pass(module, batch, scale)

    @contextmanager
    def _fast(self) -> Iterator[None]:
        """Within, the denoiser is the compiled one. For steps alone: drawing pictures would have it compiled for their
        shapes too."""
        if self._compiled is None:
            yield
            return
        self._part.forward = self._compiled
        try:
            yield
        finally:
            del self._part.forward

    def _fetch(self, name: str) -> None:
        if self._cache is not None and self._compiled is not None:
            self._cache.read(name, lambda file: torch.compiler.load_cache_artifacts(file.read_bytes()))

    def _keep(self, name: str) -> None:
        """What was compiled since the start of this process, other shapes included: more than needed does no harm."""
        if self._cache is None or self._compiled is None or self._is_kept(name):
            return
        made = torch.compiler.save_cache_artifacts()
        if made is not None:
            self._cache.write(name, lambda file: file.write_bytes(made[0]))

    def _is_kept(self, name: str) -> bool:
        return self._cache is not None and self._cache.path(name).exists()


def denoiser_of(module: nn.Module) -> nn.Module:
    """The largest of `module`'s parts, which takes most of the time; compiling the others would not pay."""
    return max(module.get_submodule("parts").children(), key=lambda part: sum(p.numel() for p in part.parameters()))


def _kind_of(part: nn.Module, device: torch.device, precision: str) -> str:
    """What compiled code depends on, but for the batches: versions, the GPU, and what the module is made of."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    layers = [type(layer).__name__ for layer in part.modules()]
    weights = [(name, tuple(p.shape), str(p.dtype), p.requires_grad) for name, p in part.named_parameters()]
    return repr((torch.__version__, torch.version.cuda, gpu, precision, layers, weights))


def _digest(kind: str, signature: Signature) -> str:
    return hashlib.sha256(f"{kind} {signature}".encode()).hexdigest()
