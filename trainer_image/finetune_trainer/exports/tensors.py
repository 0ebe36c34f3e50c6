"""Tensors in .safetensors files: the same content gives the same bytes, and a broken file is a DataError."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from finetune_trainer.errors import DataError

Dtype = Literal["fp16", "fp32"]
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def plain(tensor: Tensor, dtype: Dtype) -> Tensor:
    """A contiguous copy on the CPU in the export's number format."""
    return tensor.detach().to("cpu", DTYPES[dtype], copy=True).contiguous()


def plain_all(tensors: Mapping[str, Tensor], dtype: Dtype) -> dict[str, Tensor]:
    """`plain` for each; single numbers stay in float32, for they are factors of everything else."""
    return {key: plain(tensor, dtype if tensor.dim() else "fp32") for key, tensor in tensors.items()}


def file_name(name: str) -> str:
    """`name` without characters that a file system or a web UI's prompt may take for something else."""
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "weights"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes `tensors`, key by key, with `metadata` in order of its keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(sorted(tensors.items())), path, {"format": "pt", **metadata})
    sort_metadata(path)


def sort_metadata(path: Path) -> None:
    """Puts the entries of a safetensors header's metadata in order. The library writes them in an order that differs
    from process to process, and the same training should give the same bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise ValueError(f"{path.name}: the header grew from {size} to {len(text)} bytes when it was put in order")
        file.seek(8)
        file.write(text.ljust(size))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .safetensors file and the metadata in its header. Nothing in such a file can run code.

    Raises:
        DataError: it is none, or it is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path.name} is no readable .safetensors file ({error}); fetch it anew, or convert it to .safetensors"
        ) from error
