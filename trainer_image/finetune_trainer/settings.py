"""What the surroundings tell the trainer: FINETUNE_* environment variables. On a laptop none is needed."""

from __future__ import annotations

import os
import uuid
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from finetune_trainer.group.seat import Seat

METRICS_PORT = 8000
GROUP_PORT = 29500
"""torch's usual port for a rendezvous."""


class Settings(BaseSettings):
    """The operator sets what a pod needs. An unset POD_UID means: on somebody's own machine."""

    model_config = SettingsConfigDict(env_prefix="FINETUNE_", frozen=True)

    run_sha256: str | None = None
    """SHA-256 of the file with the TrainingRun, in hexadecimal."""
    pod_uid: str | None = None
    """UID of this pod; it names the attempt."""
    pod_name: str | None = None
    """Name of this pod."""
    work_dir: Path | None = None
    """Scratch folder: checkpoints, pictures, exports."""
    cache_dir: Path | None = None
    """Folder kept between runs: models, class pictures, latents."""
    credentials_dir: Path | None = None
    """Folder with base-model/, dataset/ and output/, each with a file for each key."""
    log_format: Literal["text", "json"] = "text"
    """json: one object a line."""
    termination_log: Path | None = None
    """Where the result is left for the operator. Default in a pod: /dev/termination-log."""
    port: int | None = Field(default=None, ge=0, le=65535)
    """Port of /metrics, /progress and /healthz; 0 picks a free one. Default in a pod: 8000, else no server."""

    node: int | None = Field(default=None, ge=0)
    """Index of this pod in its group."""
    group_host: str | None = None
    """Name of the group's first pod."""
    group_port: int = Field(default=GROUP_PORT, ge=1, le=65535)
    """Port on which the group's first pod listens for the others."""
    peer_seconds: float = Field(default=30, ge=3, le=600)
    """Seconds without a sign of life after which another pod of the group counts as lost. More where machines may
    stand still for longer, as in a live migration."""
    seat: Seat | None = None
    """Set by the supervisor of a group for each process that it starts; in JSON."""

    @property
    def in_pod(self) -> bool:
        return self.pod_uid is not None

    @cached_property
    def attempt(self) -> str:
        """Names this attempt at the run; no two attempts write to the same place."""
        return self.pod_uid or uuid.uuid4().hex[:12]

    @property
    def metrics_port(self) -> int | None:
        return METRICS_PORT if self.port is None and self.in_pod else self.port

    @property
    def termination_file(self) -> Path | None:
        if self.termination_log is None and self.in_pod:
            return Path("/dev/termination-log")
        return self.termination_log

    def cache(self) -> Path:
        """Folder for what later runs use again."""
        if self.cache_dir is not None:
            return self.cache_dir
        return self.work_dir / "cache" if self.work_dir is not None else _user_cache()

    def work(self, run_uid: str) -> Path:
        """Scratch folder of this run."""
        return (self.work_dir or _user_cache()) / "runs" / run_uid


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune"
