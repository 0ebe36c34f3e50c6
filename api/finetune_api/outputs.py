"""What a job leaves behind: checkpoints, exports, pictures, weights."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import Int32, Model, Prompt, Steps
from finetune_api.base_model import Uri
from finetune_api.rules import Form, NotInCluster, NotYet, Rule
from finetune_api.storage import SecretRef, Storage

OUTPUT_FORM = r"^(s3://[a-z0-9][a-z0-9.-]+(/.*)?|file://.+)$"
Format = Literal["Diffusers", "Kohya", "Automatic1111", "SingleFile"]


class CheckpointsSpec(Model):
    """Checkpoints hold all that is needed to go on after an interruption, bit for bit on a CPU."""

    every_seconds: Annotated[int, Field(ge=5, le=86_400)] | None = None
    """Seconds between checkpoints. Default: 60, for dreamBooth 300."""
    every_steps: Steps | None = None
    """Steps between checkpoints, in addition to everySeconds."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """How many are kept."""


class ExportsSpec(Model):
    """Loadable weights on the way."""

    every_steps: Steps
    """Steps between exports."""


class ValidationSpec(Model):
    """Pictures before and after, for the same prompts and seeds."""

    rules: ClassVar[tuple[Rule, ...]] = (NotYet("everySteps", "pictures are drawn before and after, remove the field"),)

    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=16)] | None = None
    """What is drawn. Default: the method's prompt, and the class prompt if there is one."""
    images_per_prompt: Annotated[int, Field(ge=1, le=64)] = 4
    """Pictures for each prompt; picture i has seed i before and after."""
    inference_steps: Annotated[int, Field(ge=1, le=1000)] = 25
    """Denoising steps."""
    guidance_scale: Annotated[float, Field(ge=1, le=50)] = 7.5
    """Classifier-free guidance; 1 is none."""
    every_steps: Steps | None = None
    """Draw every so many steps too."""


class SamplesSpec(Model):
    """Pictures made with the finished weights and uploaded beside them."""

    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=256)]
    """What is drawn."""
    images_per_prompt: Annotated[int, Field(ge=1, le=1000)] = 4
    """Pictures for each prompt."""
    inference_steps: Annotated[int, Field(ge=1, le=1000)] = 30
    """Denoising steps."""
    guidance_scale: Annotated[float, Field(ge=1, le=50)] = 7.5
    """Classifier-free guidance."""
    seed: Int32 = 0
    """Seed of the first picture; each next adds one."""


class OutputSpec(Model):
    """Where weights, pictures, report and manifest.json are published. The manifest comes last: where it stands,
    everything it names is there."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Form("uri", OUTPUT_FORM, "s3://bucket/prefix/"),
        NotInCluster("uri", "file://", "use s3://"),
        NotYet("formats", "use Diffusers", allowed=("Diffusers",), many=True),
    )

    uri: Uri
    """s3://bucket/prefix/, or file:///path for `finetune run` on your own machine."""
    secret_ref: SecretRef | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""
    storage: Storage | None = None
    """S3 endpoint. Default: the profile's."""
    formats: Annotated[tuple[Format, ...], Field(min_length=1, max_length=4)] = ("Diffusers",)
    """Diffusers: safetensors for load_lora_weights or from_pretrained. Kohya, Automatic1111, SingleFile: for web
    UIs."""
    dtype: Literal["fp16", "fp32"] = "fp32"
    """Number format of the exported weights."""
