"""spec.baseModel: the model that is fine-tuned."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import StringConstraints

from finetune_api.base import Model
from finetune_api.rules import Form, NotInCluster, NotYet, Rule
from finetune_api.storage import SecretRef, Storage

Uri = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
BASE_MODEL_FORM = (
    r"^(hf://[\w.-]+/[\w.-]+|s3://[a-z0-9][a-z0-9.-]+/.+|pvc://[a-z0-9][-a-z0-9.]*(/.*)?"
    r"|builtin://[a-z0-9-]+|file://.+)$"
)
Revision = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[\w][\w./-]*$")]


class BaseModelSpec(Model):
    """A Stable Diffusion 1.x, 2.x or XL model in Diffusers' layout, as safetensors."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Form("uri", BASE_MODEL_FORM, "hf://owner/name, s3://bucket/prefix, pvc://claim/path or builtin://tiny-shapes"),
        NotInCluster("uri", "file://", "use hf://, s3://, pvc:// or builtin://"),
        NotYet("vaeUri", "the VAE of the base model is used, remove the field"),
    )

    uri: Uri
    """Where the model is: hf://owner/name (Hugging Face Hub), s3://bucket/prefix, pvc://claim/path (a
    PersistentVolumeClaim of the namespace), or builtin://tiny-shapes (a tiny model that draws shapes, for trying
    things out on a CPU). file:///path is for `finetune run` on your own machine only."""
    revision: Revision | None = None
    """Branch, tag or commit of an hf:// model; it is resolved to a commit, which status.resolved and the manifest
    record. Default: main."""
    vae_uri: Uri | None = None
    """Another VAE to use in place of the model's own, in the same forms as uri."""
    secret_ref: SecretRef | None = None
    """Secret with HF_TOKEN (hf://) or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (s3://)."""
    storage: Storage | None = None
    """S3 endpoint of an s3:// model. Default: the profile's."""
