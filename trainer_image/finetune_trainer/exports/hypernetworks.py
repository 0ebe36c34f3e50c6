"""Hypernetwork files: AUTOMATIC1111's .pt, and a .safetensors of our own that is read without unpickling anything.

In the .pt, integer keys are the widths of the attention contexts that the networks work on, each with the networks for
keys and for values; the other keys are settings (modules/hypernetworks/hypernetwork.py of the web UI). In the
.safetensors, tensors are called `<width>.<k or v>.<AUTOMATIC1111's name>`, and the settings stand in the header.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from finetune_trainer.exports.legacy_torch import write_legacy
from finetune_trainer.exports.tensors import Dtype, plain, write_tensors
from finetune_trainer.methods.base import Hypernetwork

HEADER = "hypernetwork"


def write_hypernetwork(result: Hypernetwork, folder: Path, name: str, dtype: Dtype) -> None:
    """Writes <name>.pt and <name>.safetensors; `name` is what web UIs show."""
    write_legacy(folder / f"{name}.pt", pickled_hypernetwork(result, name, dtype))
    tensors = {key: plain(tensor, dtype) for key, tensor in hypernetwork_tensors(result).items()}
    settings = json.dumps(dict(result.settings), sort_keys=True)
    write_tensors(folder / f"{name}.safetensors", tensors, {HEADER: settings})


def pickled_hypernetwork(result: Hypernetwork, name: str, dtype: Dtype) -> dict[object, object]:
    """What the web UI's own training saves."""
    networks = {
        width: tuple({key: plain(tensor, dtype) for key, tensor in network.items()} for network in pair)
        for width, pair in result.layers.items()
    }
    return {
        **networks,
        "step": 0,
        "name": name,
        **result.settings,
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
    }


def hypernetwork_tensors(result: Hypernetwork) -> dict[str, Tensor]:
    """The networks' weights under flat names."""
    return {
        f"{width}.{side}.{key}": tensor
        for width, pair in result.layers.items()
        for side, network in zip("kv", pair, strict=True)
        for key, tensor in network.items()
    }
