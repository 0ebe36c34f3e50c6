"""DreamBooth: all weights of the denoiser are trained (https://arxiv.org/abs/2208.12242)."""

from __future__ import annotations

from finetune_api.methods import DreamBoothSpec

from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import Files, Needs, ParameterGroup, Result, WholeParts


class DreamBooth:
    """Implements Method."""

    needs = Needs()

    def __init__(self, spec: DreamBoothSpec) -> None:
        self.captions = (spec.prompt,)
        self._part = ""

    def install(self, family: Family, files: Files) -> tuple[ParameterGroup, ...]:
        self._part = family.denoiser
        denoiser = family.parts[self._part].requires_grad_(True)
        parameters = {f"{self._part}.{name}": value for name, value in sorted(denoiser.named_parameters())}
        return (ParameterGroup(self._part, parameters),)

    def result(self) -> WholeParts:
        return WholeParts((self._part,))

    def load(self, result: Result) -> None:
        """Nothing to do: a whole pipeline is loaded as a base model."""
