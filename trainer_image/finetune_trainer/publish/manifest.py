"""manifest.json: what a run made, of what, and with what. Where it stands, every file it names is there."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from finetune_api import RunIdentity
from finetune_api.base import Model
from finetune_api.progress import Number, Sha256
from pydantic import ConfigDict, Field

MANIFEST = "manifest.json"
LIBRARIES = ("finetune-operator", "torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pillow")


class ManifestModel(Model):
    """A manifest is read leniently: an older trainer may meet what a newer one wrote, and the other way round."""

    model_config = ConfigDict(extra="ignore")


class ManifestFile(ManifestModel):
    """One published file."""

    path: str
    """Relative to output.uri."""
    size: int
    """Bytes."""
    sha256: Sha256
    """Of the content."""


class ManifestInput(ManifestModel):
    """What the run started from."""

    uri: str
    """As in the spec."""
    revision: str
    """Commit of an hf:// model, else a digest of the files."""
    files: int | None = None
    """How many pictures."""


class ManifestTraining(ManifestModel):
    """How the training went."""

    steps: int
    """Optimizer steps."""
    loss: Number | None
    """Mean loss of the last steps."""
    resumed_from_step: int | None = None
    """Step at which the last attempt went on."""
    device: str
    """What it was trained on: cpu, or the name of the GPU."""


class ManifestAttempt(ManifestModel):
    """One attempt at the run; the last of them published it."""

    id: str
    """UID of the pod."""
    started: str
    """When, in UTC by its own clock."""
    ended: str | None = None
    """When; none for the one that published, and for one that was killed."""
    exit_code: int | None = None
    """How it ended; none for the one that published, and for one that was killed."""
    step: int | None = None
    """Optimizer steps that were done when it ended or was last heard of."""
    resumed_from_step: int | None = None
    """Step at which it went on; none when it began at the start."""
    checkpoint_step: int | None = None
    """Step of the last checkpoint that it stored."""
    lost_steps: int | None = None
    """Steps that the attempt after it had to do again."""
    at_least: bool | None = None
    """True when lost_steps may be more: it was killed and could not say how far it had come."""


class ManifestFigure(ManifestModel):
    """A measured value with its 95 % interval."""

    value: Number
    low: Number
    high: Number
    n: int
    """Pictures it comes from."""


class ManifestJudgement(ManifestModel):
    """What the training did to the model, in figures."""

    encoder: str
    """Who judged."""
    images_per_prompt: int
    step: int
    """The step whose weights were judged and are published."""
    best_step: int | None = None
    """The best judged step by the rule of spec.judgement; none where only the end was judged."""
    base: dict[str, ManifestFigure]
    """Name → figure of the base model."""
    figures: dict[str, ManifestFigure]
    """Name → figure of what is published."""


class ManifestExport(ManifestModel):
    """Weights on the way."""

    step: int
    """Optimizer steps done by then."""
    weights: tuple[str, ...]
    """What to load, relative to output.uri."""


class Manifest(ManifestModel):
    """The whole file. It holds names of Secrets, but never what is in them."""

    format: Literal["finetune.dev/manifest/v1"] = "finetune.dev/manifest/v1"
    run: RunIdentity
    """Whose run it is."""
    run_sha256: Sha256
    """Digest of the TrainingRun: another digest means other settings."""
    attempt: str
    """The attempt that published it; its files lie under attempts/<attempt>/."""
    created: str
    """When, in UTC."""
    base_model: ManifestInput
    """The model that was fine-tuned."""
    dataset: ManifestInput
    """The pictures."""
    training: ManifestTraining
    """How the training went."""
    attempts: tuple[ManifestAttempt, ...] = ()
    """Who worked on it, oldest first: the last 20 and the one that published."""
    judged: ManifestJudgement | None = None
    """Figures, where somebody judged."""
    weights: Annotated[tuple[str, ...], Field(min_length=1, max_length=16)]
    """What to load, relative to output.uri: a .safetensors or .pt file, or the folder of a pipeline."""
    exports: tuple[ManifestExport, ...] = ()
    """Weights on the way, by step."""
    files: tuple[ManifestFile, ...]
    """Every file."""
    libraries: dict[str, str]
    """Versions of what made them."""
    settings: dict[str, Any]
    """The TrainingRun: all settings, defaults filled in."""

    def to_bytes(self) -> bytes:
        """As it is published."""
        return (self.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n").encode()


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that have a say in the weights."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            # an image may carry the trainer's code without the metadata of its package
            found[name] = "unknown"
    return found
