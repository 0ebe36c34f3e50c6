"""As consumers.py, for embeddings and hypernetworks: which files AUTOMATIC1111 and ComfyUI open, and what they make of
them."""

import collections
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

# all that AUTOMATIC1111's unpickler looks up for files of tensors
ALLOWED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    **{
        ("torch", f"{name}Storage"): getattr(torch, f"{name}Storage")
        for name in ("Float", "Half", "Int", "Long", "Double", "Byte", "BFloat16")
    },
}
MEMBER = re.compile(r"[^/]+/((data/\d+)|version|(data\.pkl))")
ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softsign": nn.Softsign,
    "mish": nn.Mish,
}


class _Restricted(pickle.Unpickler):
    def persistent_load(self, saved_id: Any) -> object:
        assert saved_id[0] == "storage"
        return torch.storage.TypedStorage(_internal=True, dtype=torch.float32, device="cpu")

    def find_class(self, module: str, name: str) -> object:
        assert (module, name) in ALLOWED, f"global '{module}/{name}' is forbidden"
        return ALLOWED[module, name]


def webui_load_pickled(path: Path) -> Any:
    """AUTOMATIC1111's torch.load: first everything in the file is checked.

    Raises:
        AssertionError: what it calls possibly malicious.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                assert MEMBER.fullmatch(member), f"bad file inside {path.name}: {member}"
            with archive.open(next(name for name in archive.namelist() if name.endswith("data.pkl"))) as file:
                _Restricted(file).load()
    else:
        with path.open("rb") as file:
            # the old serialisation: magic number, version, system, content, keys of storages
            for _ in range(5):
                _Restricted(file).load()
    return torch.load(path, map_location="cpu", weights_only=False)


def webui_embedding(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The word in prompts, and the vectors: one set under "", or SDXL's two.

    Raises:
        AssertionError: it does not know the file.
    """
    data = load_file(path) if path.suffix == ".safetensors" else webui_load_pickled(path)
    if "string_to_param" in data:
        assert len(data["string_to_param"]) == 1, "embedding file has multiple terms in it"
        vectors = {"": next(iter(data["string_to_param"].values()))}
    elif type(data) is dict and "clip_g" in data and "clip_l" in data:
        vectors = dict(data)
    else:
        assert type(data) is dict
        assert type(next(iter(data.values()))) is Tensor
        assert len(data) == 1, "embedding file has multiple terms in it"
        (vector,) = data.values()
        vectors = {"": vector.unsqueeze(0) if vector.dim() == 1 else vector}
    return path.stem, {key: vector.float() for key, vector in vectors.items()}


def comfy_embedding(path: Path, key: str) -> Tensor:
    """The vectors for the text encoder that ComfyUI calls `key`: clip_l (also Stable Diffusion 1.x), clip_h (2.x) or
    clip_g."""
    safe = path.suffix == ".safetensors"
    data = load_file(path) if safe else torch.load(path, weights_only=True, map_location="cpu")
    if "string_to_param" in data:
        return next(iter(data["string_to_param"].values()))
    return data[key] if key in data else next(iter(data.values()))


Through = Callable[[Tensor], Tensor]


def webui_hypernetwork(path: Path) -> dict[int, tuple[Through, Through]]:
    """Context width → what keys and values are made of. Layers are built from the settings, in evaluation mode, and the
    weights must be theirs, name by name."""
    state = webui_load_pickled(path)
    networks = {}
    for size, pair in state.items():
        if type(size) is int:
            networks[size] = tuple(_webui_network(size, weights, state) for weights in pair)
    assert state.get("name") == path.stem
    return networks


def _webui_network(size: int, weights: Mapping[str, Tensor], state: Mapping[Any, Any]) -> Through:
    structure, activation = state.get("layer_structure", [1, 2, 1]), state.get("activation_func")
    assert structure[0] == 1
    assert structure[-1] == 1
    layers: list[nn.Module] = []
    for index in range(len(structure) - 1):
        last = index >= len(structure) - 2
        layers.append(nn.Linear(int(size * structure[index]), int(size * structure[index + 1])))
        if activation not in ("linear", None) and not (last and not state.get("activate_output", True)):
            layers.append(ACTIVATIONS[activation]())
        if state.get("is_layer_norm", False):
            layers.append(nn.LayerNorm(int(size * structure[index + 1])))
        if state.get("use_dropout", False) and index < len(structure) - 3:
            layers.append(nn.Dropout(0.3))
    network = nn.Module()
    network.linear = nn.Sequential(*layers)
    network.load_state_dict(dict(weights))
    network.eval()
    return lambda x: x + network.linear(x)


def comfy_hypernetwork(path: Path) -> dict[int, tuple[Through, Through]]:
    """As `webui_hypernetwork`. Layers are built from the weights, in their order, and never leave training mode."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    activation = state.get("activation_func", "linear")
    assert activation in ACTIVATIONS, "Unsupported Hypernetwork format"
    networks = {}
    for size, pair in state.items():
        if isinstance(size, int):
            networks[size] = tuple(_comfy_network(weights, activation, state) for weights in pair)
    return networks


def _comfy_network(weights: Mapping[str, Tensor], activation: str, state: Mapping[Any, Any]) -> Through:
    names = [key.removesuffix(".weight") for key in weights if key.endswith(".weight")]
    layers: list[nn.Module] = []
    index = 0
    while index < len(names):
        last, before_last = index == len(names) - 1, index == len(names) - 2
        layers.append(_filled(nn.Linear(*weights[f"{names[index]}.weight"].shape[::-1]), weights, names[index]))
        if activation != "linear" and (not last or state.get("activate_output", False)):
            layers.append(ACTIVATIONS[activation]())
        if state.get("is_layer_norm", False):
            index += 1
            layers.append(_filled(nn.LayerNorm(len(weights[f"{names[index]}.weight"])), weights, names[index]))
        if state.get("use_dropout", False) and not last and not (before_last and not state.get("last_layer_dropout")):
            layers.append(nn.Dropout(0.3))
        index += 1
    network = nn.Sequential(*layers)
    return lambda x: x + network(x)


def _filled(layer: nn.Module, weights: Mapping[str, Tensor], name: str) -> nn.Module:
    layer.load_state_dict({"weight": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]})
    return layer
