"""Hypernetwork: small residual networks on what the keys and values of attention are computed from, as AUTOMATIC1111
trains and draws with them (its choices and file format; there is no paper).

There is one pair of networks for each width of an attention's context, shared by all attentions of that width: with
the text's width these are the cross-attentions. The first of a pair feeds the keys, the second the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise, product

import torch
from diffusers.models.attention_processor import Attention
from finetune_api.methods import HypernetworkSpec
from torch import Tensor, nn

from finetune_trainer.data.draw import Purpose, draw
from finetune_trainer.errors import ConfigurationError, DataError
from finetune_trainer.families.base import Family
from finetune_trainer.methods.base import Files, Hypernetwork, Needs, ParameterGroup, Result

# The API's names → the names in files and the layers that those mean to AUTOMATIC1111 (its swish is Hardswish).
ACTIVATIONS: Mapping[str, tuple[str, type[nn.Module]]] = {
    "Linear": ("linear", nn.Identity),
    "ReLU": ("relu", nn.ReLU),
    "LeakyReLU": ("leakyrelu", nn.LeakyReLU),
    "ELU": ("elu", nn.ELU),
    "Swish": ("swish", nn.Hardswish),
    "Tanh": ("tanh", nn.Tanh),
    "Sigmoid": ("sigmoid", nn.Sigmoid),
    "Softsign": ("softsign", nn.Softsign),
    "Mish": ("mish", nn.Mish),
}
STD = 0.01
"""Of first weights. Small: the first step starts close to the base model."""


class ContextNetwork(nn.Module):
    """x + layers(x). Layers are numbered as in files: what has no weights counts too."""

    def __init__(
        self, width: int, structure: tuple[float, ...], activation: str, layer_norm: bool, dropout: float
    ) -> None:
        """
        Args:
            width: of x.
            structure: widths of the layers as multiples of `width`, the first and the last being 1.
            activation: between the layers, by the API's name; never after the last one.
            layer_norm: after each layer, the last one too.
            dropout: share of values dropped between the layers in training; never after the last one, which
                AUTOMATIC1111 refuses.
        """
        super().__init__()
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(int(width * multiple) for multiple in structure)):
            last = index == len(structure) - 2
            layers.append(nn.Linear(before, after))
            if activation != "Linear" and not last:
                layers.append(ACTIVATIONS[activation][1]())
            if layer_norm:
                layers.append(nn.LayerNorm(after))
            if dropout > 0 and not last:
                layers.append(nn.Dropout(dropout))
        self.linear = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """[…, width] → the same shape."""
        changed: Tensor = x + self.linear(x)
        return changed

    def without_dropout(self) -> nn.Module:
        """The same weights, numbered as if there had never been dropout."""
        plain = nn.Module()
        plain.linear = nn.Sequential(*(layer for layer in self.linear if not isinstance(layer, nn.Dropout)))
        return plain


class HypernetworkMethod:
    """Implements Method. Its result is called Hypernetwork."""

    needs = Needs()

    def __init__(self, spec: HypernetworkSpec, seed: int) -> None:
        if spec.layer_structure[0] != 1 or spec.layer_structure[-1] != 1:
            given = ", ".join(f"{multiple:g}" for multiple in spec.layer_structure)
            raise ConfigurationError(
                f"method.hypernetwork.layerStructure is [{given}]; its first and last number must be 1, for what comes "
                "out is added to what goes in"
            )
        self._spec, self._seed = spec, seed
        self.captions: tuple[str, ...] = (spec.prompt,)
        self.words: tuple[str, ...] = ()
        self.own_rates: tuple[float, ...] = ()
        self._pairs: dict[int, tuple[ContextNetwork, ContextNetwork]] = {}

    def check(self, family: Family, files: Files) -> None:
        self._widths(_attentions(family))

    def install(self, family: Family, files: Files) -> tuple[ParameterGroup, ...]:
        denoiser, attentions = family.parts[family.denoiser], _attentions(family)
        for width in self._widths(attentions):
            self._pairs[width] = (self._network(width), self._network(width))
        nets = nn.ModuleDict({str(width): nn.ModuleList(pair) for width, pair in self._pairs.items()})
        prefix = f"{family.denoiser}.hypernetwork"
        parameters = {f"{prefix}.{name}": value for name, value in sorted(nets.named_parameters())}
        self._initialise(parameters)
        _attach(denoiser, nets.to(family.device), attentions)
        return (ParameterGroup("hypernetwork", parameters),)

    def result(self) -> Hypernetwork:
        """Weights as files number them, without dropout: it does nothing when drawing, and a reader that puts layers
        together from the settings (ComfyUI) would leave its own switched on."""
        layers = {
            width: (_weights(keys.without_dropout()), _weights(values.without_dropout()))
            for width, (keys, values) in self._pairs.items()
        }
        return Hypernetwork(layers, self._settings())

    def load(self, result: Result) -> None:
        assert isinstance(result, Hypernetwork), "a hypernetwork's result"
        settings = self._settings()
        for name in ("layer_structure", "activation_func", "is_layer_norm"):
            if result.settings.get(name, settings[name]) != settings[name]:
                raise DataError(
                    f"the hypernetwork file's {name} is {result.settings[name]}, and this run's {settings[name]}; "
                    "give the file that this run wrote"
                )
        if result.layers.keys() != self._pairs.keys():
            raise DataError(
                f"the hypernetwork file has networks for the widths {_listed(result.layers)}, and this run for "
                f"{_listed(self._pairs)}; give the file that this run wrote"
            )
        for width, pair in self._pairs.items():
            for network, weights in zip(pair, result.layers[width], strict=True):
                try:
                    network.without_dropout().load_state_dict(dict(weights))
                except RuntimeError as error:
                    raise DataError(f"the hypernetwork file does not fit this run at width {width}: {error}") from error

    def _widths(self, attentions: list[Attention]) -> list[int]:
        """Widths of contexts that get networks, smallest first. Each leaves room for all layers."""
        present = {attention.to_k.in_features for attention in attentions}
        crossing = {attention.to_k.in_features for attention in attentions if attention.is_cross_attention}
        widths = sorted(crossing if self._spec.sizes is None else set(self._spec.sizes))
        strange = sorted(set(widths) - present)
        if strange:
            raise ConfigurationError(
                f"method.hypernetwork.sizes has {_listed(strange)}, and no attention of this model has such a context; "
                f"there are {_listed(present)}"
            )
        for width, multiple in product(widths, self._spec.layer_structure):
            if int(width * multiple) < 1:
                raise ConfigurationError(
                    f"method.hypernetwork.layerStructure has {multiple:g}, which leaves nothing of a width of {width}; "
                    f"use at least {1 / width:.4f}"
                )
        return widths

    def _network(self, width: int) -> ContextNetwork:
        spec = self._spec
        return ContextNetwork(width, spec.layer_structure, spec.activation, spec.layer_norm, spec.dropout or 0.0)

    @torch.no_grad()
    def _initialise(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """All weights normal with deviation 0.01, all biases 0. Normalisation layers too, as AUTOMATIC1111 does: with
        weights of 1 the last one would add noise of length 1 to the text from the first step on."""
        for index, (name, parameter) in enumerate(parameters.items()):
            if name.endswith(".weight"):
                parameter.copy_(STD * draw(self._seed, Purpose.INITIALISATION, 0, index).noise(tuple(parameter.shape)))
            else:
                parameter.zero_()

    def _settings(self) -> dict[str, object]:
        spec = self._spec
        return {
            "layer_structure": [int(m) if float(m).is_integer() else float(m) for m in spec.layer_structure],
            "activation_func": ACTIVATIONS[spec.activation][0],
            "is_layer_norm": spec.layer_norm,
            "weight_initialization": "Normal",
            "use_dropout": False,
            "activate_output": False,
            "last_layer_dropout": False,
        }


def _attentions(family: Family) -> list[Attention]:
    return [module for module in family.parts[family.denoiser].modules() if isinstance(module, Attention)]


def _attach(denoiser: nn.Module, nets: nn.ModuleDict, attentions: list[Attention]) -> None:
    """Makes the networks part of the denoiser, so that whoever runs it has them, and lets the inputs of to_k and to_v
    go through them. Hooks: they change no name of a weight, and run again when gradient checkpointing does."""
    denoiser.add_module("hypernetwork", nets)
    denoiser.train(denoiser.training)  # new layers are born in training mode, and would drop while others draw
    for attention in attentions:
        width = str(attention.to_k.in_features)
        if width in nets:
            keys, values = nets[width]
            # partial, not a closure: a copy of the denoiser then has copies of the networks in its hooks
            attention.to_k.register_forward_pre_hook(partial(_through, keys))
            attention.to_v.register_forward_pre_hook(partial(_through, values))
    denoiser.register_state_dict_post_hook(_hide)


def _through(network: nn.Module, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (network(inputs[0]), *inputs[1:])


def _hide(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    """Keeps the networks out of saved denoisers, which no library could load with them."""
    for key in [key for key in state if key.startswith(f"{prefix}hypernetwork.")]:
        del state[key]


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.state_dict().items()}


def _listed(widths: object) -> str:
    assert isinstance(widths, (Mapping, set, list))
    return ", ".join(str(width) for width in sorted(widths))
