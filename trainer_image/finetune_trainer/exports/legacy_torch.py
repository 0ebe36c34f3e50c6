"""Files as torch.save wrote them before 1.6: a few pickles, then the numbers.

AUTOMATIC1111 looks at each member of today's zip files and refuses those that newer versions of torch have added, so
that only this serialisation passes its check. torch itself writes memory addresses into it; here storages are counted,
and the same content gives the same bytes. Such files are written only, never read.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

LITTLE_ENDIAN = {
    "protocol_version": PROTOCOL_VERSION,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}
STORAGES = {torch.float32: torch.FloatStorage, torch.float16: torch.HalfStorage}


class _Rebuilt:
    """Stands for a tensor: unpickles as `torch._utils._rebuild_tensor_v2(storage, 0, size, stride, False, {})`."""

    def __init__(self, key: str, tensor: Tensor) -> None:
        self._storage, self._tensor = _Storage(key, tensor), tensor

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        size, stride = tuple(self._tensor.shape), self._tensor.stride()
        return torch._utils._rebuild_tensor_v2, (self._storage, 0, size, stride, False, OrderedDict())


class _Storage:
    def __init__(self, key: str, tensor: Tensor) -> None:
        self.reference = ("storage", STORAGES[tensor.dtype], key, "cpu", tensor.numel(), None)


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        return obj.reference if isinstance(obj, _Storage) else None


def write_legacy(path: Path, content: Mapping[object, object]) -> None:
    """Writes nested dicts, lists, tuples, numbers, strings and float tensors for `torch.load` of any version."""
    tensors: list[Tensor] = []
    prepared = _prepared(content, tensors)
    stream = io.BytesIO()
    for value in (MAGIC_NUMBER, PROTOCOL_VERSION, LITTLE_ENDIAN, prepared, [str(key) for key in range(len(tensors))]):
        _Pickler(stream, protocol=2).dump(value)
    for tensor in tensors:
        stream.write(struct.pack("<q", tensor.numel()))
        stream.write(tensor.numpy().tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue())


def _prepared(value: object, tensors: list[Tensor]) -> object:
    """`value` with every tensor counted, and equal strings made one object: pickle writes an object that it has seen
    as a reference, and whether two strings are one should not decide on the bytes."""
    if isinstance(value, Tensor):
        tensors.append(value.detach().to("cpu", copy=True).contiguous())
        return _Rebuilt(str(len(tensors) - 1), tensors[-1])
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, Mapping):
        return {_prepared(key, tensors): _prepared(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_prepared(item, tensors) for item in value]
    if isinstance(value, tuple):
        return tuple(_prepared(item, tensors) for item in value)
    return value
