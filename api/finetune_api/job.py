"""FineTuneJob: what a user applies."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import DNS_SUBDOMAIN, Model, ObjectName
from finetune_api.base_model import BaseModelSpec
from finetune_api.dataset import DatasetSpec
from finetune_api.engine import EngineSpec
from finetune_api.metadata import Metadata
from finetune_api.methods import MethodSpec
from finetune_api.outputs import (
    CheckpointsSpec,
    ExportsSpec,
    JudgementSpec,
    OutputSpec,
    SamplesSpec,
    ValidationSpec,
)
from finetune_api.rules import AmongWhen, Immutable, Rule
from finetune_api.run_policy import RunPolicySpec
from finetune_api.status import FineTuneJobStatus
from finetune_api.techniques import TECHNIQUES
from finetune_api.training import TrainingSpec


class FineTuneJobSpec(Model):
    """What to train, on what, how, and where the weights go."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *(AmongWhen("output.formats", f"method.{name}", built_in.formats) for name, built_in in TECHNIQUES.items()),
        *(
            Immutable(field)
            for field in (
                "profileName",
                "baseModel",
                "method",
                "dataset",
                "training",
                "engine",
                "checkpoints",
                "exports",
                "validation",
                "judgement",
                "samples",
                "output",
                "image",
                "serviceAccountName",
                "operatorClass",
                "runPolicy.queueName",
                "runPolicy.priorityClass",
            )
        ),
    )

    profile_name: ObjectName | None = None
    """FineTuneProfile with the image, resources and defaults. Default: the profile marked as default."""
    base_model: BaseModelSpec
    """The model that is fine-tuned."""
    method: MethodSpec
    """The technique. Set exactly one of lora, dreamBooth, textualInversion and hypernetwork."""
    dataset: DatasetSpec
    """The pictures."""
    training: TrainingSpec | None = None
    """How long and how fast. Every field has a default that suits the technique."""
    engine: EngineSpec | None = None
    """Which engine executes the steps, processes and offload. Default: one process, and the engine is chosen for it."""
    checkpoints: CheckpointsSpec | None = None
    """How often the state is saved so that nothing is lost with a node."""
    exports: ExportsSpec | None = None
    """Loadable weights on the way."""
    validation: ValidationSpec | None = None
    """Pictures before and after training, for the report."""
    judgement: JudgementSpec | None = None
    """Figures of what was learned and what was spoiled."""
    samples: SamplesSpec | None = None
    """Pictures made with the finished weights."""
    output: OutputSpec
    """Where the weights go."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the trainer, one of those that the profile allows. Default: the profile's."""
    service_account_name: ObjectName | None = None
    """Service account of the training pod, for workload identity; the profile must allow it. Default: an account
    without a token."""
    suspend: bool = False
    """Stop and free the resources; set to false to go on from the last checkpoint."""
    run_policy: RunPolicySpec | None = None
    """Queue, retries, deadlines, clean-up."""
    operator_class: Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=DNS_SUBDOMAIN)] | None = None
    """Which operator serves the job, where there are several; what it makes is labelled with it. Default: the one
    without a class."""


class FineTuneJob(Model):
    """Fine-tunes a text-to-image model on your pictures and publishes the weights."""

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["FineTuneJob"] = "FineTuneJob"
    metadata: Annotated[Metadata, Field(default_factory=Metadata)]
    spec: FineTuneJobSpec
    """What to train, on what, how, and where the weights go."""
    status: FineTuneJobStatus | None = None
    """What the operator observed. Written by the operator alone."""
