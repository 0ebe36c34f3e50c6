"""A module that an engine has taken apart, as it was before: for drawing, judging and export."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TAKEN_APART = (
    "_parameters",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""What sharding engines change in each submodule: they put shards in the parameters' place, and hooks that ask the
other processes for the rest. One process alone would wait for these for ever."""


class BareModule:
    """Remembers `module`: to be made before the engine gets it. Holds the parameters, and whatever tensors these have
    by themselves; an engine that replaces parameters rather than their data must empty those (`release`)."""

    def __init__(self, module: nn.Module) -> None:
        self._before = [
            (each, {key: each.__dict__[key].copy() for key in TAKEN_APART if key in each.__dict__})
            for each in module.modules()
        ]
        self.parameters: dict[str, nn.Parameter] = dict(module.named_parameters())
        """By their names in the module; the same objects as before, which techniques hold as well."""
        self.shapes = {name: value.shape for name, value in self.parameters.items()}

    @contextmanager
    def filled(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """The plain module with `values`, one for each of the parameters; then what the engine made of it, to the
        bit."""
        engines = [(each, {key: each.__dict__[key] for key in kept}) for each, kept in self._before]
        data = {name: parameter.data for name, parameter in self.parameters.items()}
        self.fill(values)
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = data[name]
            _put(engines)

    def fill(self, values: Mapping[str, Tensor]) -> None:
        """As `filled`, for good."""
        _put((each, {key: value.copy() for key, value in kept.items()}) for each, kept in self._before)
        for name, parameter in self.parameters.items():
            parameter.grad = None
            parameter.data = values[name]

    def release(self) -> None:
        """Lets go of the parameters' own data, which the engine keeps elsewhere."""
        for parameter in self.parameters.values():
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


def _put(kept: Iterable[tuple[nn.Module, Mapping[str, object]]]) -> None:
    for module, values in kept:
        module.__dict__.update(values)
