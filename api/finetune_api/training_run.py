"""TrainingRun: the one document the trainer reads. Everything in it is decided: no default is left to the reader."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from finetune_api.base import Model, Seconds
from finetune_api.base_model import BaseModelSpec
from finetune_api.dataset import DatasetSpec
from finetune_api.engine import EngineSpec
from finetune_api.methods import MethodSpec
from finetune_api.outputs import (
    CheckpointsSpec,
    ExportsSpec,
    JudgementSpec,
    OutputSpec,
    SamplesSpec,
    ValidationSpec,
)
from finetune_api.training import LossSpec, OptimizerSpec, SchedulerSpec, TrainingSpec


class RunIdentity(Model):
    """Whose run it is."""

    name: Annotated[str, Field(max_length=253)]
    """Name of the FineTuneJob."""
    namespace: Annotated[str, Field(max_length=253)]
    """Its namespace; "local" for `finetune run` without a cluster."""
    uid: Annotated[str, Field(max_length=64)]
    """Its UID; for a local run a digest of its name and output, so that the same command resumes the same run."""


class ResolvedTraining(TrainingSpec):
    """spec.training with nothing left open but the length in epochs, which only the pictures decide, and the
    precision, which only the device decides."""

    learning_rate: Annotated[float, Field(gt=0, le=1)]
    """Learning rate."""
    scheduler: SchedulerSpec
    """Course of the learning rate."""
    optimizer: OptimizerSpec
    """Optimizer."""
    loss: LossSpec
    """Noise and loss options."""


class ResolvedCheckpoints(CheckpointsSpec):
    """spec.checkpoints with nothing left open."""

    every_seconds: Annotated[int, Field(ge=5, le=86_400)]
    """Seconds between checkpoints."""


class TrainingRun(Model):
    """A job and a profile put together, immutable."""

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["TrainingRun"] = "TrainingRun"
    identity: RunIdentity
    """Whose run it is."""
    base_model: BaseModelSpec
    """The model that is fine-tuned."""
    method: MethodSpec
    """The technique, class image settings filled in."""
    dataset: DatasetSpec
    """The pictures; resolution may be left to the base model."""
    training: ResolvedTraining
    """How long and how fast."""
    engine: EngineSpec
    """Which engine executes the steps, processes and offload."""
    checkpoints: ResolvedCheckpoints
    """How often the state is saved."""
    validation: ValidationSpec
    """Pictures before and after, prompts filled in."""
    exports: ExportsSpec | None = None
    """Loadable weights on the way; none without."""
    judgement: JudgementSpec | None = None
    """How it is judged; without, the pictures of validation are judged where the base model has a judge."""
    samples: SamplesSpec | None = None
    """Pictures made with the finished weights; none without."""
    output: OutputSpec
    """Where the weights go."""
    grace_seconds: Seconds = 120
    """Time between SIGTERM and SIGKILL."""

    def to_json(self) -> str:
        """Canonical JSON: the same run always gives the same bytes, so that its digest can be compared."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Reads what `to_json` wrote. Raises pydantic.ValidationError."""
        return cls.model_validate_json(text)
