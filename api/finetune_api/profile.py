"""FineTuneProfile: what an administrator offers. A job names one and gets image, resources and defaults from it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import Endpoint, Model, ObjectName, Seconds, Steps
from finetune_api.engine import EngineSpec, Quantity, Resources
from finetune_api.metadata import Metadata
from finetune_api.methods import ClassImagesSpec
from finetune_api.outputs import CheckpointsSpec, ValidationSpec
from finetune_api.rules import AtMostOneOf, MultipleOf, NotAbove, OnlyWhen, Rule, UnsetNeeds
from finetune_api.storage import Storage
from finetune_api.training import TrainingSpec

ShortText = Annotated[str, Field(min_length=1, max_length=253)]


class Toleration(Model):
    """As in a pod."""

    rules: ClassVar[tuple[Rule, ...]] = (
        OnlyWhen("value", "operator", "Equal", is_default=True),
        OnlyWhen("tolerationSeconds", "effect", "NoExecute"),
        UnsetNeeds("key", "operator", "Exists"),
    )

    key: Annotated[str, Field(max_length=316)] | None = None
    """Taint key."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Relation of key and value."""
    value: Annotated[str, Field(max_length=63)] | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; none means all."""
    toleration_seconds: Annotated[int, Field(ge=0, le=86_400)] | None = None
    """How long a NoExecute taint is borne."""


class CacheSpec(Model):
    """A PersistentVolumeClaim of the job's namespace for models, class pictures and latents. Without one they are
    made anew in each pod."""

    claim_name: ObjectName
    """Name of the claim."""


class ProfileDefaults(Model):
    """Used where a job says nothing."""

    rules: ClassVar[tuple[Rule, ...]] = (MultipleOf("resolution", 8, "the VAE makes one latent of 8 by 8 pixels"),)

    training: TrainingSpec | None = None
    """Defaults of spec.training, field by field."""
    engine: EngineSpec | None = None
    """Defaults of spec.engine, field by field."""
    checkpoints: CheckpointsSpec | None = None
    """Defaults of spec.checkpoints, field by field."""
    validation: ValidationSpec | None = None
    """Defaults of spec.validation, field by field."""
    class_images: ClassImagesSpec | None = None
    """Defaults of priorPreservation.classImages, field by field."""
    storage: Storage | None = None
    """S3 endpoint and region."""
    resolution: Annotated[int, Field(ge=64, le=2048)] | None = None
    """Side of the training picture in pixels."""


class ProfileLimits(Model):
    """What a job may ask for."""

    max_steps: Steps | None = None
    """Most optimizer steps."""
    max_nodes: Annotated[int, Field(ge=1, le=64)] | None = None
    """Most pods that train together."""
    max_active_deadline_seconds: Seconds | None = None
    """Longest deadline; it is also the deadline of a job that names none."""
    allowed_namespaces: Annotated[tuple[ObjectName, ...], Field(min_length=1, max_length=256)] | None = None
    """Namespaces whose jobs may use the profile. Default: all."""
    allowed_images: (
        Annotated[tuple[Annotated[str, Field(min_length=1, max_length=512)], ...], Field(min_length=1, max_length=64)]
        | None
    ) = None
    """Images of the trainer that a job may name besides the profile's. Default: none."""
    allowed_endpoints: Annotated[tuple[Endpoint, ...], Field(min_length=1, max_length=64)] | None = None
    """S3 endpoints that a job may name, letter for letter; AWS S3 is one of them only if its endpoint is listed. The
    profile's own endpoint serves the jobs that name none. Default: any."""
    allowed_secret_names: Annotated[tuple[ObjectName, ...], Field(min_length=1, max_length=64)] | None = None
    """Secrets that a job may mount. Default: any of its namespace."""
    allowed_service_accounts: Annotated[tuple[ObjectName, ...], Field(min_length=1, max_length=64)] | None = None
    """Service accounts that a job may name. Default: none."""


class FineTuneProfileSpec(Model):
    """Image, resources, placement, defaults and limits."""

    rules: ClassVar[tuple[Rule, ...]] = (
        NotAbove("defaults.training.steps", "limits.maxSteps"),
        AtMostOneOf(("defaults.training.epochs", "limits.maxSteps")),
        NotAbove("defaults.engine.nodes", "limits.maxNodes"),
    )

    is_default: bool = False
    """Used by jobs that name no profile. One profile of the cluster should have it."""
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """Image of the trainer. Default: the operator's."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """As in a pod."""
    image_pull_secrets: Annotated[tuple[ObjectName, ...], Field(max_length=8)] | None = None
    """Secrets for private registries, of the job's namespace."""
    resources: Resources | None = None
    """Requests and limits of the training container."""
    node_selector: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=32)] | None = None
    """Labels a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] | None = None
    """Taints that are borne."""
    runtime_class_name: ObjectName | None = None
    """RuntimeClass, such as nvidia."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    cache: CacheSpec | None = None
    """Where models and caches are kept between pods."""
    scratch_size_limit: Quantity | None = None
    """Size limit of the pod's scratch volume, and of the one for offload to Nvme. Default: 20Gi."""
    termination_grace_period_seconds: Annotated[int, Field(ge=10, le=3600)] | None = None
    """Time a pod has to save its state when it is stopped. Default: 120, for dreamBooth 600."""
    node_lost: Literal["ForceDelete", "Wait"] = "ForceDelete"
    """What happens to a pod that a node which no longer answers cannot end: it is deleted by force two minutes after
    its grace is over, so that the job goes on elsewhere, or a person decides. Default: ForceDelete."""
    defaults: ProfileDefaults | None = None
    """Used where a job says nothing."""
    limits: ProfileLimits | None = None
    """What a job may ask for."""


class FineTuneProfile(Model):
    """What an administrator offers to FineTuneJobs: image, resources, defaults, limits."""

    api_version: Literal["finetune.dev/v1alpha1"] = "finetune.dev/v1alpha1"
    kind: Literal["FineTuneProfile"] = "FineTuneProfile"
    metadata: Annotated[Metadata, Field(default_factory=Metadata)]
    spec: FineTuneProfileSpec
    """Image, resources, placement, defaults and limits."""
