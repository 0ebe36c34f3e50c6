"""Hypernetwork files: both web UIs compute with them what the training computed, and our own file is read again."""

from pathlib import Path

import pytest
import torch
from finetune_trainer.errors import DataError
from finetune_trainer.exports.hypernetworks import write_hypernetwork
from finetune_trainer.exports.readers import read_hypernetwork
from finetune_trainer.methods.base import Hypernetwork
from finetune_trainer.methods.hypernetwork import ACTIVATIONS, ContextNetwork
from safetensors.torch import save_file
from support.consumers_files import comfy_hypernetwork, webui_hypernetwork

WIDTHS = (24, 16)


def trained(
    activation: str, structure: tuple[float, ...], layer_norm: bool, dropout: float
) -> tuple[dict[int, tuple[ContextNetwork, ContextNetwork]], Hypernetwork]:
    """Networks with random weights, and the result that they leave."""
    numbers = torch.Generator().manual_seed(5)
    pairs = {}
    for width in WIDTHS:
        pair = tuple(ContextNetwork(width, structure, activation, layer_norm, dropout).eval() for _ in "kv")
        with torch.no_grad():
            for network in pair:
                for parameter in network.parameters():
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=numbers))
        pairs[width] = pair
    settings = {
        "layer_structure": list(structure),
        "activation_func": ACTIVATIONS[activation][0],
        "is_layer_norm": layer_norm,
        "weight_initialization": "Normal",
        "use_dropout": False,
        "activate_output": False,
        "last_layer_dropout": False,
    }
    layers = {width: tuple(network.without_dropout().state_dict() for network in pair) for width, pair in pairs.items()}
    return pairs, Hypernetwork(layers, settings)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("structure", "layer_norm", "dropout"),
    [((1, 2, 1), False, 0.0), ((1, 2, 1), True, 0.0), ((1, 2, 0.5, 1), True, 0.3), ((1, 1), False, 0.3)],
)
def test_web_uis_compute_the_same(
    activation: str, structure: tuple[float, ...], layer_norm: bool, dropout: float, tmp_path: Path
) -> None:
    pairs, result = trained(activation, structure, layer_norm, dropout)
    write_hypernetwork(result, tmp_path, "sks-dog", "fp32")
    context = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))
    readers = [webui_hypernetwork]
    if activation == "Linear" or not layer_norm:
        # with both, ComfyUI takes the last normalisation for the last layer, and activates what comes out before it
        readers.append(comfy_hypernetwork)
    for reader in readers:
        networks = reader(tmp_path / "sks-dog.pt")
        assert networks.keys() == set(WIDTHS)
        for width, pair in pairs.items():
            for theirs, own in zip(networks[width], pair, strict=True):
                torch.testing.assert_close(theirs(context[..., :width]), own(context[..., :width]))


def test_keys_and_values_are_not_confused(tmp_path: Path) -> None:
    pairs, result = trained("ReLU", (1, 2, 1), False, 0.0)
    write_hypernetwork(result, tmp_path, "h", "fp32")
    context = torch.ones(1, 1, 24)
    keys, values = webui_hypernetwork(tmp_path / "h.pt")[24]
    assert torch.equal(keys(context), pairs[24][0](context))
    assert not torch.allclose(values(context), pairs[24][0](context))


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 0.0), ("fp16", 1e-3)])
def test_own_file_is_read_again(dtype: str, tolerance: float, tmp_path: Path) -> None:
    _, result = trained("Mish", (1, 2, 1), True, 0.3)
    write_hypernetwork(result, tmp_path, "h", dtype)
    again = read_hypernetwork(tmp_path / "h.safetensors")
    assert again.settings == result.settings
    assert again.layers.keys() == result.layers.keys()
    for width, pair in result.layers.items():
        for one, other in zip(again.layers[width], pair, strict=True):
            assert one.keys() == other.keys()
            for key, tensor in other.items():
                torch.testing.assert_close(one[key], tensor, rtol=tolerance, atol=tolerance)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    for place in ("1", "2"):
        write_hypernetwork(trained("ReLU", (1, 2, 1), True, 0.0)[1], tmp_path / place, "h", "fp16")
    for name in ("h.pt", "h.safetensors"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize(
    ("tensors", "header"),
    [
        ({"24.k.linear.0.weight": torch.zeros(2)}, None),
        ({"24.k.linear.0.weight": torch.zeros(2)}, "no JSON"),
        ({"24.k.linear.0.weight": torch.zeros(2)}, "[]"),
        ({"24.x.linear.0.weight": torch.zeros(2)}, "{}"),
        ({"width.k.linear.0.weight": torch.zeros(2)}, "{}"),
        ({"24": torch.zeros(2)}, "{}"),
    ],
)
def test_other_files_are_refused(tensors: dict[str, torch.Tensor], header: str | None, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "h.safetensors", None if header is None else {"hypernetwork": header})
    with pytest.raises(DataError, match=r"h\.safetensors is no hypernetwork of this trainer"):
        read_hypernetwork(tmp_path / "h.safetensors")


def test_the_pickled_one_is_never_read(tmp_path: Path) -> None:
    write_hypernetwork(trained("ReLU", (1, 2, 1), False, 0.0)[1], tmp_path, "h", "fp32")
    with pytest.raises(DataError, match=r"h\.pt is no readable \.safetensors file"):
        read_hypernetwork(tmp_path / "h.pt")
