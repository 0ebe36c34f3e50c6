"""spec.dataset: the pictures, and how they become training samples."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import Model
from finetune_api.base_model import Uri
from finetune_api.rules import Form, MoreThanOneNeeds, MultipleOf, NotAbove, NotInCluster, Rule
from finetune_api.storage import SecretRef, Storage

DATASET_FORM = r"^(s3://[a-z0-9][a-z0-9.-]+(/.*)?|pvc://[a-z0-9][-a-z0-9.]*(/.*)?|file://.+)$"


class CaptionsSpec(Model):
    """Where captions come from, and how they vary."""

    rules: ClassVar[tuple[Rule, ...]] = (MultipleOf("maxTokens", 75, "text encoders read windows of 75 tokens"),)

    source: Literal["Prompt", "Sidecar", "Jsonl", "Folder"] = "Prompt"
    """Prompt: the method's prompt for every picture. Sidecar: a .txt beside each picture. Jsonl: lines
    {"file_name": …, "text": …} of metadata.jsonl. Folder: pictures in "20_sks dog" are called "sks dog" and count 20
    times; a .txt beside a picture goes before."""
    shuffle_tags: bool = False
    """Shuffle comma-separated tags anew for each sample; the first stays where it is."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of samples whose caption is left empty."""
    max_tokens: Annotated[int, Field(ge=75, le=225)] = 225
    """Tokens of a caption that are read, a multiple of 75. As many windows of 75 are used as the longest needs."""


class BucketsSpec(Model):
    """Aspect-ratio buckets: pictures are trained near their own shape rather than cropped square."""

    rules: ClassVar[tuple[Rule, ...]] = (
        NotAbove("minResolution", "maxResolution", when_unset=(256, 1024)),
        MultipleOf("minResolution", 8, "the VAE makes one latent of 8 by 8 pixels"),
        MultipleOf("step", 8, "the VAE makes one latent of 8 by 8 pixels"),
    )

    min_resolution: Annotated[int, Field(ge=64, le=2048)] = 256
    """Shortest side of a bucket in pixels."""
    max_resolution: Annotated[int, Field(ge=64, le=4096)] = 1024
    """Longest side of a bucket in pixels."""
    step: Annotated[int, Field(ge=8, le=256)] = 64
    """Step between the sides of buckets in pixels."""


class DatasetSpec(Model):
    """Pictures in PNG, JPEG or WebP; rotation from EXIF is applied, any aspect is taken."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Form("uri", DATASET_FORM, "s3://bucket/prefix/ or pvc://claim/path"),
        NotInCluster("uri", "file://", "use s3:// or pvc://"),
        MultipleOf("resolution", 8, "the VAE makes one latent of 8 by 8 pixels"),
        MoreThanOneNeeds("cropsPerPicture", "crop", "Random", "Center has only one crop"),
    )

    uri: Uri
    """The folder: s3://bucket/prefix/, pvc://claim/path, or file:///path for `finetune run` on your own machine."""
    secret_ref: SecretRef | None = None
    """Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for an s3:// folder."""
    storage: Storage | None = None
    """S3 endpoint. Default: the profile's."""
    captions: CaptionsSpec | None = None
    """Where captions come from. Default: the method's prompt."""
    resolution: Annotated[int, Field(ge=64, le=2048)] | None = None
    """Side of the square training picture in pixels, a multiple of 8. Default: the base model's own size."""
    crop: Literal["Center", "Random"] = "Center"
    """How a picture that is not square is cut."""
    crops_per_picture: Annotated[int, Field(ge=1, le=64)] = 1
    """How many fixed crops each picture yields; with more than one, crop: Random."""
    flip: bool = False
    """Mirror half of the samples. Not for subjects with a left and a right."""
    buckets: BucketsSpec | None = None
    """Aspect-ratio buckets in place of square crops."""
    masks: Literal["None", "AlphaChannel", "Sidecar"] = "None"
    """Weigh the loss by a mask: what is white or opaque is learned. AlphaChannel: the pictures' own transparency.
    Sidecar: subject-masklabel.png of the same size beside subject.jpg."""
