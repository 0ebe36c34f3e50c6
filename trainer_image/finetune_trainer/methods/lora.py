"""LoRA: low-rank matrices beside the frozen layers of the denoiser (https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import torch
from finetune_api.methods import LoraSpec
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from finetune_trainer.data.draw import Purpose, draw
from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import AdapterWeights, Files, Needs, ParameterGroup, Result

# Ends of module names in Diffusers' UNet, by the API's words for them.
TARGETS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feedForward": ("ff.net.0.proj", "ff.net.2"),
    "convolution": ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
}


class Lora:
    """Implements Method."""

    needs = Needs()

    def __init__(self, spec: LoraSpec, seed: int) -> None:
        alpha = float(spec.rank) if spec.alpha is None else spec.alpha
        self.captions = (spec.prompt,)
        self._rank, self._seed = spec.rank, seed
        self._modules = sorted(module for target in spec.targets for module in TARGETS[target])
        self._config = LoraConfig(r=spec.rank, lora_alpha=alpha, target_modules=self._modules)
        self._part = ""
        self._denoiser: nn.Module | None = None

    def install(self, family: Family, files: Files) -> tuple[ParameterGroup, ...]:
        self._part = family.denoiser
        self._denoiser = family.parts[family.denoiser]
        self._denoiser.add_adapter(self._config)
        parameters = {
            f"{self._part}.{name}": parameter
            for name, parameter in sorted(self._denoiser.named_parameters())
            if parameter.requires_grad
        }
        self._initialise(parameters)
        return (ParameterGroup("lora", parameters),)

    @torch.no_grad()
    def _initialise(self, parameters: dict[str, nn.Parameter]) -> None:
        """Gaussian / rank below, zeros above, so that the first step starts at the base model. Drawn here rather
        than by PEFT: the same values on every device and in every version of torch."""
        for index, (name, parameter) in enumerate(parameters.items()):
            if ".lora_A." in name:
                values = draw(self._seed, Purpose.INITIALISATION, 0, index).noise(tuple(parameter.shape))
                parameter.copy_(values / self._rank)
            else:
                parameter.zero_()

    def result(self) -> AdapterWeights:
        assert self._denoiser is not None, "install comes first"
        tensors: dict[str, Tensor] = get_peft_model_state_dict(self._denoiser)
        config = {
            "r": self._rank,
            "lora_alpha": self._config.lora_alpha,
            "target_modules": self._modules,
            "peft_type": "LORA",
        }
        return AdapterWeights({self._part: tensors}, {self._part: config})

    def load(self, result: Result) -> None:
        assert isinstance(result, AdapterWeights)
        assert self._denoiser is not None, "install comes first"
        set_peft_model_state_dict(self._denoiser, dict(result.tensors[self._part]))
