"""What every model of the API shares: camelCase on the wire, no unknown fields, and rules written once.

A rule of the API is data (`rules.py`). It is projected twice: to CEL for the API server and to a check in Python for
`finetune run` on a laptop, so the two can never disagree.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

from finetune_api.rules import Rule

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

ObjectName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=DNS_SUBDOMAIN)]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Token = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^\S+$")]
Endpoint = Annotated[str, StringConstraints(max_length=512, pattern=r"^https?://[^\s/@]+(/[^\s]*)?$")]
Steps = Annotated[int, Field(ge=1, le=1_000_000)]
Seconds = Annotated[int, Field(ge=1, le=31_536_000)]
Int32 = Annotated[int, Field(ge=0, le=2_147_483_647)]


class RulesBroken(ValueError):
    """The rules that an object breaks: all of them, so that a reader mends everything at once."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        super().__init__("; ".join(rule.message for rule in rules))
        self.rules = rules


class Model(BaseModel):
    """Base of all API objects."""

    model_config = ConfigDict(
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        validate_assignment=False,
        frozen=True,
        use_attribute_docstrings=True,
        ser_json_inf_nan="constants",
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        broken = tuple(rule for rule in type(self).rules if not rule.holds(self))
        if broken:
            raise RulesBroken(broken)
        return self

    def wire(self) -> dict[str, object]:
        """The object as it stands in YAML: camelCase, unset and null fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
