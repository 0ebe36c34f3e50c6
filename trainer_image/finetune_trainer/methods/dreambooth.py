"""DreamBooth: all weights of the denoiser are trained (https://arxiv.org/abs/2208.12242), on request those of the text
encoders too.

A text encoder learns a tenth as fast unless method.dreamBooth.textEncoderLearningRate says otherwise: at the
denoiser's rate it forgets what other words mean long before the denoiser has learned the subject, and trainers in use
set a tenth to a twentieth. The tenth is filled in where the run is resolved, so that the run says it.
"""

from __future__ import annotations

from finetune_api.methods import DreamBoothSpec

from finetune_trainer.errors import DataError
from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import Files, Needs, ParameterGroup, Result, WholeParts
from finetune_trainer.methods.reached import reached


class DreamBooth:
    """Implements Method."""

    def __init__(self, spec: DreamBoothSpec) -> None:
        self._spec = spec
        self.needs = Needs(live_text_encoder=spec.train_text_encoder)
        self.captions: tuple[str, ...] = (spec.prompt,)
        self.words: tuple[str, ...] = ()
        rate = spec.text_encoder_learning_rate
        self.own_rates: tuple[float, ...] = () if rate is None or not spec.train_text_encoder else (rate,)
        self._parts: tuple[str, ...] = ()

    def check(self, family: Family, files: Files) -> None:
        """Any model can be trained whole."""

    def install(self, family: Family, files: Files) -> tuple[ParameterGroup, ...]:
        self._parts = (family.denoiser, *(family.text_encoders if self._spec.train_text_encoder else ()))
        groups = []
        for name in self._parts:
            part = family.parts[name].requires_grad_(True)
            parameters = {f"{name}.{key}": value for key, value in sorted(part.named_parameters())}
            if name == family.denoiser:
                groups.append(ParameterGroup(name, parameters))
            else:
                parameters = reached(family, parameters)
                groups.append(ParameterGroup(name, parameters, self._spec.text_encoder_learning_rate))
        return tuple(groups)

    def result(self) -> WholeParts:
        return WholeParts(self._parts)

    def load(self, result: Result) -> None:
        raise DataError(
            "a DreamBooth's result is a whole model, and nothing to put on another; give its folder as the base model"
        )
