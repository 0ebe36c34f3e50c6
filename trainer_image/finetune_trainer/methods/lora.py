"""LoRA: low-rank matrices beside frozen layers (https://arxiv.org/abs/2106.09685), on request with magnitudes of their
own (DoRA, https://arxiv.org/abs/2402.09353) or the rank-stabilised scale (https://arxiv.org/abs/2312.03732)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from finetune_api.methods import LoraSpec
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from finetune_trainer.data.draw import Purpose, draw
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.families.base import Family
from finetune_trainer.methods.adapter_fit import check_fits, scale_of
from finetune_trainer.methods.base import AdapterWeights, Files, Needs, ParameterGroup, Result
from finetune_trainer.methods.outline import layers_of, outline
from finetune_trainer.methods.reached import reached

# Ends of module names in Diffusers' UNet, by the API's words for them.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feedForward": ("ff.net.0.proj", "ff.net.2"),
    "convolution": ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
}
# The same in CLIP's text encoders, which have no convolutions.
TEXT_TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": ("q_proj", "k_proj", "v_proj", "out_proj"),
    "feedForward": ("mlp.fc1", "mlp.fc2"),
}


class Lora:
    """Implements Method."""

    def __init__(self, spec: LoraSpec, seed: int) -> None:
        self._spec, self._seed = spec, seed
        self._alpha = float(spec.rank) if spec.alpha is None else spec.alpha
        self.needs = Needs(live_text_encoder=spec.train_text_encoder)
        self.captions: tuple[str, ...] = (spec.prompt,)
        self.words: tuple[str, ...] = ()
        rate = spec.text_encoder_learning_rate
        self.own_rates: tuple[float, ...] = () if rate is None or not spec.train_text_encoder else (rate,)
        self._parts: dict[str, nn.Module] = {}
        self._modules: dict[str, list[str]] = {}

    def check(self, family: Family, files: Files) -> None:
        ends = self._targets(family)
        if self._spec.continue_from is not None:
            rank, dora = self._spec.rank, self._spec.use_dora
            layers = {name: layers_of(family.parts[name], of_part) for name, of_part in ends.items()}
            own = AdapterWeights({name: outline(found, rank, dora) for name, found in layers.items()}, {})
            check_fits(*self._given(family, files), own)

    def install(self, family: Family, files: Files) -> tuple[ParameterGroup, ...]:
        groups = []
        first = 0
        for name, ends in self._targets(family).items():
            part = self._parts[name] = family.parts[name]
            self._modules[name] = ends
            part.add_adapter(self._config(ends))
            part.train(part.training)  # new layers are born in training mode, and would drop while others draw
            if not self._spec.use_dora:
                _take_inputs_as_they_are(part)
            parameters = {
                f"{name}.{key}": parameter for key, parameter in sorted(part.named_parameters()) if "lora_" in key
            }
            self._initialise(parameters, first)
            first += len(parameters)
            if name == family.denoiser:
                groups.append(ParameterGroup("lora", parameters))
            else:
                rate = self._spec.text_encoder_learning_rate
                groups.append(ParameterGroup(f"lora.{name}", reached(family, parameters), rate))
        if self._spec.continue_from is not None:
            self._continue_from(*self._given(family, files))
        return tuple(groups)

    def result(self) -> AdapterWeights:
        tensors = {name: dict(self._tensors(part)) for name, part in self._parts.items()}
        config: dict[str, dict[str, object]] = {
            name: {
                "r": self._spec.rank,
                "lora_alpha": self._alpha,
                "target_modules": ends,
                "use_dora": self._spec.use_dora,
                "use_rslora": self._spec.use_rslora,
                "peft_type": "LORA",
            }
            for name, ends in self._modules.items()
        }
        return AdapterWeights(tensors, config)

    def load(self, result: Result) -> None:
        assert isinstance(result, AdapterWeights), "a LoRA's result"
        self._continue_from(result, "the LoRA file")

    def _config(self, ends: list[str]) -> LoraConfig:
        spec = self._spec
        return LoraConfig(
            r=spec.rank,
            lora_alpha=self._alpha,
            lora_dropout=spec.dropout or 0.0,
            target_modules=ends,
            use_dora=spec.use_dora,
            use_rslora=spec.use_rslora,
        )

    def _targets(self, family: Family) -> dict[str, list[str]]:
        """Part → ends of the names of its layers that get matrices."""
        kinds = {family.denoiser: TARGETS}
        if self._spec.train_text_encoder:
            kinds |= dict.fromkeys(family.text_encoders, TEXT_TARGETS)
        return {name: self._ends(name, family.parts[name], of_part) for name, of_part in kinds.items()}

    def _given(self, family: Family, files: Files) -> tuple[AdapterWeights, str]:
        """What `continueFrom` holds, and what to call it."""
        from finetune_trainer.exports.readers import read_adapter  # it reads into what this package defines

        assert self._spec.continue_from is not None, "only asked where it is set"
        path = files.path(self._spec.continue_from)
        return read_adapter(path, family), f"method.lora.continueFrom ({path.name})"

    def _ends(self, name: str, part: nn.Module, kinds: Mapping[str, tuple[str, ...]]) -> list[str]:
        """Ends of the names of the layers that get matrices. All asked for are there, and each layer is as large as
        the rank at least."""
        chosen = {target: kinds[target] for target in self._spec.targets if target in kinds}
        if not chosen:
            raise ConfigurationError(
                f"method.lora.targets has only {', '.join(self._spec.targets)}, which a text encoder does not have; "
                "add attention, or set method.lora.trainTextEncoder: false"
            )
        for target, ends in chosen.items():
            layers = list(layers_of(part, ends))
            if not layers:
                raise ConfigurationError(
                    f"method.lora.targets has {target}, and the model's {name} has no such layers "
                    f"({', '.join(ends)}); remove it"
                )
            for path, layer in layers:
                rows, columns = layer.weight.shape[0], math.prod(layer.weight.shape[1:])
                if self._spec.rank > min(rows, columns):
                    raise ConfigurationError(
                        f"method.lora.rank is {self._spec.rank}, and {name}.{path} is a matrix of {rows} × {columns}, "
                        f"which has no higher rank than {min(rows, columns)}; use at most that"
                    )
        return sorted(end for ends in chosen.values() for end in ends)

    @torch.no_grad()
    def _initialise(self, parameters: Mapping[str, nn.Parameter], first: int) -> None:
        """Gaussian / rank below, zeros above, so that the first step starts at the base model. Drawn here rather
        than by PEFT: the same values on every device and in every version of torch. Magnitudes stay as PEFT makes
        them, the lengths of the frozen weight's rows."""
        for index, (name, parameter) in enumerate(parameters.items(), first):
            if ".lora_A." in name:
                values = draw(self._seed, Purpose.INITIALISATION, 0, index).noise(tuple(parameter.shape))
                parameter.copy_(values / self._spec.rank)
            elif ".lora_B." in name:
                parameter.zero_()

    @torch.no_grad()
    def _continue_from(self, weights: AdapterWeights, source: str) -> None:
        """Copies `weights`. Where their scale is another, the upper matrices take up the difference: what the layers
        say stays the same."""
        own = self.result()
        check_fits(weights, source, own)
        for name, part in self._parts.items():
            own_scale = scale_of(own.config[name])
            for key, tensor in self._tensors(part):
                given = weights.tensors[name][key].to(tensor)
                if key.endswith(".lora_B.weight"):
                    given = given * (scale_of(weights.config[name], key) / own_scale)
                tensor.copy_(given)

    def _tensors(self, part: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """PEFT's keys without the adapter's name → the live tensors, detached."""
        state: dict[str, Tensor] = get_peft_model_state_dict(part)
        for key, tensor in state.items():
            yield key, tensor.detach()


def _take_inputs_as_they_are(part: nn.Module) -> None:
    """PEFT makes a layer's input float32 for its matrices, which autocast rounds to what it was: two passes over every
    activation for nothing. Magnitudes (DoRA) are computed in the input's type, and keep theirs."""
    for layer in part.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
