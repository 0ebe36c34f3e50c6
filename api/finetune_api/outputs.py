"""What a job leaves behind: checkpoints, exports, pictures, weights."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import Int32, Model, Prompt, Steps
from finetune_api.base_model import Revision, Uri
from finetune_api.rules import Form, NotInCluster, Requires, Rule
from finetune_api.storage import SecretRef, Storage

OUTPUT_FORM = r"^(s3://[a-z0-9][a-z0-9.-]+(/.*)?|file://.+)$"
Format = Literal["Diffusers", "Kohya", "Automatic1111", "SingleFile", "Merged"]
ENCODER_FORM = r"^(hf://[\w.-]+/[\w.-]+|s3://[a-z0-9][a-z0-9.-]+/.+|builtin://[a-z0-9-]+|file://.+)$"


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


class JudgementSpec(Model):
    """What the training did to the model, in figures: is the subject learned, does it leak into other prompts, has the
    rest drifted. The prompts are validation's, and the method's own for the subject and its class where validation has
    none. See docs/judgement.md."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Form("encoderUri", ENCODER_FORM, "hf://owner/name, s3://bucket/prefix or builtin://tiny-shapes"),
        NotInCluster("encoderUri", "file://", "use hf://, s3:// or builtin://"),
        Requires("patience", "everySteps", "it counts judgements on the way"),
        Requires("encoderRevision", "encoderUri", "it is a revision of that model"),
    )

    encoder_uri: Uri | None = None
    """The model that looks at the pictures: DINO, DINOv2 or CLIP in transformers' layout, as hf://owner/name or
    s3://bucket/prefix, read with the credentials of baseModel. Default: the base model's own judge where it has one
    (builtin://tiny-shapes)."""
    encoder_revision: Revision | None = None
    """Branch, tag or commit of an hf:// encoder. Default: main."""
    images_per_prompt: Annotated[int, Field(ge=2, le=1000)] = 64
    """Pictures for each prompt; picture i has seed i each time."""
    every_steps: Steps | None = None
    """Judge every so many steps too, and not only at the end. It costs drawing time."""
    max_leak: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Limit of the rule for the best weights: the highest fidelity with a leak of at most this. A share of pictures
    where the base model has its own judge; by another encoder a rise of the cosine, where 0.2 is much."""
    keep_best: bool = True
    """Publish the best judged weights rather than the last; only with everySteps."""
    patience: Annotated[int, Field(ge=1, le=100)] | None = None
    """Stop after so many judgements without a better one. Default: never."""


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
    )

    uri: Uri
    """s3://bucket/prefix/, or file:///path for `finetune run` on your own machine."""
    secret_ref: SecretRef | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""
    storage: Storage | None = None
    """S3 endpoint. Default: the profile's."""
    formats: Annotated[tuple[Format, ...], Field(min_length=1, max_length=5)] | None = None
    """Diffusers: for load_lora_weights, load_textual_inversion or from_pretrained. Kohya: a LoRA for web UIs.
    Automatic1111: a hypernetwork or embedding as .pt. SingleFile: the whole model in one .safetensors for web UIs.
    Merged: a whole pipeline with the LoRA folded in. Default: what is usual for the technique, a LoRA in both
    namings."""
    dtype: Literal["fp16", "fp32"] = "fp32"
    """Number format of the exported weights."""
