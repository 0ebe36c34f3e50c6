"""What a trainer tells the operator: /progress while it works, the termination message at the end.

Both cross a trust boundary: the operator checks them against these bounds and never copies text that is not here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import Int32, Model
from finetune_api.engine import EngineKind

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Number = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
Stage = Literal[
    "Starting",
    "Fetching",
    "Preparing",
    "DrawingClassImages",
    "DrawingBefore",
    "Training",
    "DrawingAfter",
    "Evaluating",
    "Exporting",
    "Sampling",
    "Publishing",
    "Done",
]
Activity = Literal["data", "step", "checkpoint", "judging", "drawing"]
"""What an attempt spends its time on: waiting for samples, computing steps, standing still for a checkpoint, judging,
and drawing pictures of any kind. The rest is fetching, loading and publishing."""
MemoryKind = Literal["resident", "device", "devicePeak"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Duration = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


Figure = Annotated[str, StringConstraints(pattern=r"^[a-z][A-Za-z0-9]{0,39}$")]


class Judgement(Model):
    """The figures of a training at one step."""

    step: Int32
    """The step whose weights were judged."""
    figures: Annotated[dict[Figure, Number], Field(max_length=32)]
    """Name → value, such as fidelity and leak."""
    best_step: Int32 | None = None
    """The best step so far by the rule of spec.judgement."""


class Performance(Model):
    """How well an attempt uses its machine."""

    time_shares: Annotated[dict[Activity, Share], Field(max_length=8)]
    """Shares of the attempt's time so far."""
    memory_bytes: Annotated[dict[MemoryKind, int], Field(max_length=3)]
    """Memory by kind: of the process, on the GPU now, and on the GPU at most."""
    step_seconds_p50: Duration | None = None
    """Median time of the last steps, at most 1000, without the attempt's first."""
    step_seconds_p99: Duration | None = None
    """99 of 100 of these steps took no longer."""
    mfu: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None = None
    """Model FLOPs utilisation: what the steps' arithmetic would take at the device's measured peak, by what they
    took. None where the peak is not measured: on a CPU."""


class EngineInUse(Model):
    """How the steps of an attempt are executed."""

    kind: EngineKind
    """The engine, as chosen."""
    does: Annotated[str, Field(max_length=256)]
    """The engine with its options, for people."""
    why: Annotated[str, Field(max_length=512)]
    """Why it was chosen, for people."""
    predicted_bytes: Annotated[int, Field(ge=0, le=2**50)] | None = None
    """Memory of the device that is predicted to be in use at the peak; none on a CPU."""
    fell_from: Annotated[str, Field(max_length=256)] | None = None
    """The engine with its options that was given up for this one; why says of what. None where none was."""


class Progress(Model):
    """Answer of GET /progress, at most 64 KiB."""

    run_uid: Annotated[str, Field(max_length=64)]
    """UID of the FineTuneJob, as in the TrainingRun."""
    pod_uid: Annotated[str, Field(max_length=64)]
    """UID of the pod that answers."""
    stage: Stage
    """What is being done."""
    step: Int32
    """Optimizer steps done."""
    total_steps: Int32
    """Optimizer steps in all."""
    loss: Number | None = None
    """Mean loss of the last steps."""
    images_per_second: Number | None = None
    """Training pictures a second."""
    seconds_left: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None
    """Estimated time to the end of the training."""
    checkpoint_step: Int32 | None = None
    """Step of the last complete checkpoint."""
    resumed_from_step: Int32 | None = None
    """Step at which this attempt went on; none when it began at the start."""
    judgement: Judgement | None = None
    """The latest figures; none before the first judgement."""
    engine: EngineInUse | None = None
    """How steps are executed; none before it was chosen."""
    performance: Performance | None = None
    """How well the machine is used; none before the first stage."""


class Result(Model):
    """Termination message, at most 3 KiB."""

    run_uid: Annotated[str, Field(max_length=64)]
    """UID of the FineTuneJob."""
    outcome: Literal["Succeeded", "Interrupted", "PeerLost", "BadData", "BadConfiguration", "Error"]
    """How the trainer ended."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """For people: the field, the value and the remedy. Never a secret."""
    step: Int32 = 0
    """Optimizer steps done."""
    loss: Number | None = None
    """Last mean loss."""
    resumed_from_step: Int32 | None = None
    """Step at which this attempt went on."""
    uri: Annotated[str, Field(max_length=1024)] | None = None
    """Folder of the results."""
    manifest_uri: Annotated[str, Field(max_length=1024)] | None = None
    """manifest.json."""
    manifest_sha256: Sha256 | None = None
    """Digest of manifest.json."""
    weights: Annotated[tuple[Annotated[str, Field(max_length=256)], ...], Field(max_length=16)] = ()
    """The weights, relative to uri."""
    base_model_revision: Annotated[str, Field(max_length=128)] | None = None
    """Commit or digest of the base model."""
    judgement: Judgement | None = None
    """Figures of what was published."""
