"""Access to S3-compatible storage and to Secrets, the same wherever a URI stands."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from finetune_api.base import Endpoint, Model, ObjectName


class SecretRef(Model):
    """A Secret of the job's namespace. Its keys have fixed names: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_SESSION_TOKEN, HF_TOKEN. They are mounted as files and never read by the operator."""

    name: ObjectName
    """Name of the Secret."""


class Storage(Model):
    """How an S3-compatible store is reached."""

    endpoint: Endpoint | None = None
    """Endpoint URL, such as https://minio.example.com:9000. Default: AWS S3 of the region."""
    region: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[a-z0-9-]+$")] | None = None
    """Region. Default: us-east-1."""
