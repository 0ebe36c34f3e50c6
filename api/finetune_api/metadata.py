"""The part of Kubernetes object metadata that the project reads."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

NAME_LENGTH = 40
NAME_FORM = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_MESSAGE = (
    f"metadata.name must have at most {NAME_LENGTH} characters: lower-case letters, digits and '-', beginning with a "
    "letter and ending with a letter or digit, since Services and pods are named after it"
)


def is_name(name: str) -> bool:
    """Whether an object of the group may have this name; the CRDs say the same in CEL."""
    return len(name) <= NAME_LENGTH and re.search(NAME_FORM, name) is not None


class Metadata(BaseModel):
    """Unlike the rest of the API it passes over what it does not know: the API server adds fields at will."""

    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, populate_by_name=True, frozen=True)

    name: str = ""
    namespace: str | None = None
    uid: str | None = None
    generation: int | None = None
    resource_version: str | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
