"""How much memory this process holds."""

from __future__ import annotations

import sys

from finetune_api.progress import MemoryKind


def resident_memory() -> int:
    """Bytes of this process in main memory."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def device_memory() -> int:
    """Bytes that torch holds on the GPU; 0 on a CPU, or before torch is loaded. Tensors or not: what a recorded step
    works in is no tensor's between two steps."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.memory_reserved()) if torch is not None and torch.cuda.is_initialized() else 0


def device_peak_memory() -> int:
    """Most bytes that torch held on the GPU at once; 0 on a CPU, or before torch is loaded."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.max_memory_reserved()) if torch is not None and torch.cuda.is_initialized() else 0


def memory() -> dict[MemoryKind, int]:
    """Bytes by kind."""
    return {"resident": resident_memory(), "device": device_memory(), "devicePeak": device_peak_memory()}
