"""What one attempt at a run works with: what it is to do, and what it has on this machine for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune_api import TrainingRun

from finetune_trainer.publish.store import Store
from finetune_trainer.settings import Settings
from finetune_trainer.signals import Stop
from finetune_trainer.sources import LocalModel
from finetune_trainer.sources.files import StartingFiles
from finetune_trainer.telemetry.listener import Listener


@dataclass(frozen=True)
class Inputs:
    """What a run starts from, on this machine."""

    model: LocalModel
    pictures: Path
    files: StartingFiles
    """What the technique starts from."""
    encoder: LocalModel | None
    """What judges; None where no encoder is named."""


@dataclass(frozen=True)
class Attempt:
    """The same for all that is done in it."""

    run: TrainingRun
    digest: str
    """SHA-256 of `run`: another digest means other settings."""
    inputs: Inputs
    work: Path
    """Scratch folder of the run; what is in it may be used again by a later attempt on this machine."""
    store: Store
    """The output."""
    settings: Settings
    listener: Listener
    should_stop: Stop

    @property
    def kept_in(self) -> Store | None:
        """Where a later attempt finds what this one kept, when it finds no `work`. A pod's disk ends with it, also
        where the output is a volume; a laptop's stays, and an output that is a folder there need not have it too."""
        lasting = self.settings.in_pod or self.run.output.uri.startswith("s3://")
        return self.store if lasting else None
