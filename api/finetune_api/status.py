"""FineTuneJob.status: written by the operator, read by people and `kubectl wait`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_api.base import Int32, Model
from finetune_api.engine import Resources

Phase = Literal["Pending", "Queued", "Starting", "Running", "Suspended", "Succeeded", "Failed"]
ConditionType = Literal["Accepted", "PodsReady", "Suspended", "Succeeded", "Failed"]
Text = Annotated[str, Field(max_length=1024)]


class StatusModel(Model):
    """Status is read leniently: an older operator may meet what a newer one wrote."""

    model_config = ConfigDict(
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        use_attribute_docstrings=True,
    )


class Condition(StatusModel):
    """One statement about the job, as metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """Accepted, PodsReady, Suspended, Succeeded or Failed."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=1024)]
    """Why, in one CamelCase word."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """Why, for people: the field, the value and the remedy."""
    last_transition_time: Annotated[str, Field(max_length=64)]
    """When status last changed."""
    observed_generation: int | None = None
    """Generation of the spec that was judged."""


class ProgressStatus(StatusModel):
    """How far the training is."""

    step: Int32 = 0
    """Optimizer steps done."""
    total_steps: Int32 = 0
    """Optimizer steps in all."""
    percent: Annotated[str, Field(max_length=8)] = "0%"
    """step of totalSteps, for people."""
    stage: Annotated[str, Field(max_length=64)] | None = None
    """What the trainer is doing: Fetching, Preparing, DrawingClassImages, Training, Exporting, Publishing …"""
    loss: Annotated[str, Field(max_length=32)] | None = None
    """Mean loss of the last steps, as a decimal."""
    images_per_second: Annotated[str, Field(max_length=32)] | None = None
    """Training pictures a second, as a decimal."""
    estimated_end: Annotated[str, Field(max_length=64)] | None = None
    """When the training is expected to end."""
    stale: bool | None = None
    """True while the trainer does not answer; the training itself may well go on."""
    last_update_time: Annotated[str, Field(max_length=64)] | None = None
    """When this was read from the trainer."""


class AttemptStatus(StatusModel):
    """One pod that worked on the job."""

    pod_uid: Annotated[str, Field(max_length=64)]
    """UID of the pod."""
    pod_name: Annotated[str, Field(max_length=253)] = ""
    """Name of the pod."""
    started_at: Annotated[str, Field(max_length=64)] | None = None
    """When the pod was created."""
    finished_at: Annotated[str, Field(max_length=64)] | None = None
    """When its container ended."""
    exit_code: int | None = None
    """Exit code of the trainer."""
    step: Int32 | None = None
    """Optimizer steps that were done when it was last heard of."""
    resumed_from_step: Int32 | None = None
    """Step at which it went on; 0 when it began at the start."""
    reason: Annotated[str, Field(max_length=128)] | None = None
    """How it ended: Succeeded, Interrupted, BadData, BadConfiguration, Error …"""
    message: Text | None = None
    """The trainer's own words about a failure."""


class ResolvedStatus(StatusModel):
    """What the job was made of, once job, profile and built-in defaults were put together."""

    profile: Annotated[str, Field(max_length=253)] | None = None
    """Profile that was used."""
    image: Annotated[str, Field(max_length=512)] | None = None
    """Image of the trainer."""
    resources: Resources | None = None
    """Resources of the pod."""
    run_sha256: Annotated[str, Field(max_length=64)] | None = None
    """Digest of the TrainingRun that the pods get."""
    profile_sha256: Annotated[str, Field(max_length=64)] | None = None
    """Digest of the profile as it was when the job was accepted."""
    run_config_map: Annotated[str, Field(max_length=253)] | None = None
    """ConfigMap with the TrainingRun."""
    base_model_revision: Annotated[str, Field(max_length=128)] | None = None
    """Commit of an hf:// model, or digest of the files."""


class ArtifactsStatus(StatusModel):
    """Where the results are."""

    uri: Annotated[str, Field(max_length=1024)] | None = None
    """Folder of the results."""
    manifest_uri: Annotated[str, Field(max_length=1024)] | None = None
    """manifest.json, which names every file with size and digest."""
    manifest_sha256: Annotated[str, Field(max_length=64)] | None = None
    """Digest of manifest.json."""
    weights: Annotated[list[Annotated[str, Field(max_length=1024)]], Field(max_length=16)] | None = None
    """The weights, relative to uri."""


class JudgementStatus(StatusModel):
    """What the training did to the model, by the latest judgement."""

    step: Int32 = 0
    """The step whose weights were judged."""
    best_step: Int32 | None = None
    """The best step so far by the rule of spec.judgement."""
    figures: Annotated[dict[str, Annotated[str, Field(max_length=32)]], Field(max_length=32)] | None = None
    """Name → value as a decimal: fidelity, leak, drift …"""


class EngineStatus(StatusModel):
    """How the steps are executed, by the latest attempt."""

    kind: Annotated[str, Field(max_length=64)]
    """The engine, as spec.engine.kind would name it."""
    does: Annotated[str, Field(max_length=256)] = ""
    """The engine with its options: Captured, micro-batches cut in 2."""
    why: Annotated[str, Field(max_length=512)] = ""
    """Why it was chosen, or why another one was given up."""
    fell_from: Annotated[str, Field(max_length=256)] | None = None
    """The engine with its options that was tried before and given up: out of memory, or no step could be recorded."""
    predicted_memory: Annotated[str, Field(max_length=32)] | None = None
    """Memory of the GPU that is predicted to be in use at the peak."""


class FineTuneJobStatus(StatusModel):
    """What the operator observed."""

    observed_generation: int | None = None
    """Generation of the spec that this status speaks of."""
    phase: Phase | None = None
    """Summary for people, derived from conditions. Programs should read conditions."""
    conditions: Annotated[list[Condition], Field(max_length=16)] | None = None
    """Accepted, PodsReady, Suspended, Succeeded, Failed."""
    method: Annotated[str, Field(max_length=64)] | None = None
    """The technique."""
    start_time: Annotated[str, Field(max_length=64)] | None = None
    """When the first pod was asked for."""
    completion_time: Annotated[str, Field(max_length=64)] | None = None
    """When the job ended."""
    progress: ProgressStatus | None = None
    """How far the training is."""
    attempts: Annotated[list[AttemptStatus], Field(max_length=20)] | None = None
    """The last 20 pods that worked on it."""
    retries: Int32 | None = None
    """Attempts that failed and counted."""
    interruptions: Int32 | None = None
    """Attempts that were cut short and did not count: eviction, preemption, a lost node or peer."""
    lost_steps: Int32 | None = None
    """Steps that had to be done again after all failures and interruptions, as far as they were heard of."""
    active_seconds: Int32 | None = None
    """Seconds of activity that have ended: time spent suspended or in a queue is left out."""
    active_since: Annotated[str, Field(max_length=64)] | None = None
    """Since when it has been active; none while it is suspended or queued. activeDeadlineSeconds counts both."""
    resolved: ResolvedStatus | None = None
    """What the job was made of."""
    engine: EngineStatus | None = None
    """How the steps are executed, and why so."""
    judgement: JudgementStatus | None = None
    """Figures of the weights, where they are judged."""
    artifacts: ArtifactsStatus | None = None
    """Where the results are."""
