"""The GPU of a training, from within its process and from outside. Nothing here is used on a CPU."""

from __future__ import annotations

import os
import subprocess
import threading
from types import TracebackType
from typing import Self

SECONDS_BETWEEN_LOOKS = 0.2
"""What torch holds on a GPU it keeps, so that little is missed between two looks."""
LOOK_SECONDS = 30
"""The driver may have to be loaded."""


def hold_at_most(size: int) -> None:
    """From now on torch runs out of memory rather than hold more than `size` bytes on the GPU."""
    import torch

    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / total))


def held() -> int:
    """Bytes that torch held at most; 0 without a GPU."""
    import torch

    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0


class DeviceUse:
    """Looks at the use of the GPU while its `with` block lasts, through nvidia-smi, which takes no memory there: what
    a process takes for CUDA itself, for kernels and libraries is seen too."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        """Raises OSError, ValueError or subprocess.SubprocessError: there is no nvidia-smi, or it does not say."""
        self._idle = self._most = used()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    @property
    def rise(self) -> int:
        """Bytes at most above what was used when the block began."""
        return self._most - self._idle

    def _look(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            self._most = max(self._most, used())


def used() -> int:
    """Bytes in use on the first GPU that is visible, by whomever. Raises as DeviceUse."""
    number = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0] or "0"
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", number]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LOOK_SECONDS)
    return int(said.stdout) * 2**20
