"""Values of a job and its profile, read in two places: from the objects in Python, and in CEL where the API server
has them as `object` and `params`.

Every `cel` is an expression of an optional value, and `read` gives None where that is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from finetune_api.rules import literal
from finetune_api.techniques import TECHNIQUES


@dataclass(frozen=True)
class Asked:
    """A job that is put together with a profile. Specs are as they stand in YAML: camelCase, what is unset left out."""

    job: Mapping[str, object]
    profile: Mapping[str, object]
    profile_name: str = ""
    """Empty: no profile, built-in defaults only."""
    namespace: str | None = None
    """The job's; None where there is no cluster."""


class Value(Protocol):
    """Something that is set or not."""

    @property
    def cel(self) -> str: ...

    def read(self, asked: Asked) -> object: ...


def _walk(whole: Mapping[str, object], path: str) -> object:
    found: object = whole
    for name in path.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def _optional(root: str, path: str) -> str:
    return root + "".join(f".?{name}" for name in path.split("."))


@dataclass(frozen=True)
class OfJob:
    """A field below spec of the job."""

    path: str

    @property
    def cel(self) -> str:
        return _optional("object.spec", self.path)

    def read(self, asked: Asked) -> object:
        return _walk(asked.job, self.path)


@dataclass(frozen=True)
class OfProfile:
    """A field below spec of the profile."""

    path: str

    @property
    def cel(self) -> str:
        return _optional("params.spec", self.path)

    def read(self, asked: Asked) -> object:
        return _walk(asked.profile, self.path)


@dataclass(frozen=True)
class Namespace:
    """The job's namespace."""

    cel: str = "optional.of(request.namespace)"

    def read(self, asked: Asked) -> object:
        return asked.namespace


@dataclass(frozen=True)
class FirstOf:
    """The first of several that is set."""

    values: tuple[Value, ...]

    @property
    def cel(self) -> str:
        first, *rest = (value.cel for value in self.values)
        return first + "".join(f".or({other})" for other in rest)

    def read(self, asked: Asked) -> object:
        return next((found for value in self.values if (found := value.read(asked)) is not None), None)


@dataclass(frozen=True)
class Unless:
    """`then`, but nothing where `other` is set."""

    other: Value
    then: Value

    @property
    def cel(self) -> str:
        return f"({self.other.cel}.hasValue() ? optional.none() : {self.then.cel})"

    def read(self, asked: Asked) -> object:
        return None if self.other.read(asked) is not None else self.then.read(asked)


@dataclass(frozen=True)
class BuiltInSteps:
    """Steps of the job's technique where nobody names a number."""

    @property
    def cel(self) -> str:
        *others, (_, last) = TECHNIQUES.items()
        choices = "".join(f"has(object.spec.method.{name}) ? {built_in.steps} : " for name, built_in in others)
        return f"optional.of({choices}{last.steps})"

    def read(self, asked: Asked) -> object:
        chosen = (name for name in TECHNIQUES if OfJob(f"method.{name}").read(asked) is not None)
        return TECHNIQUES[next(chosen)].steps


@dataclass(frozen=True)
class AwsOf:
    """Where the S3 URI `section`.uri of a job leads when nobody names an endpoint."""

    section: str
    shown: str = "AWS S3"

    @property
    def cel(self) -> str:
        uri = f"object.spec.{self.section}.uri"
        return f"({uri}.startsWith('s3://') ? optional.of({literal(self.shown)}) : optional.none())"

    def read(self, asked: Asked) -> object:
        uri = OfJob(f"{self.section}.uri").read(asked)
        return self.shown if str(uri).startswith("s3://") else None


STEPS = FirstOf(
    (
        OfJob("training.steps"),
        Unless(
            OfJob("training.epochs"),
            FirstOf(
                (
                    OfProfile("defaults.training.steps"),
                    Unless(OfProfile("defaults.training.epochs"), BuiltInSteps()),
                )
            ),
        ),
    )
)
"""Steps of the run; nothing where its length is in epochs. `resolve()` comes to the same number (tested)."""

NODES = FirstOf((OfJob("engine.nodes"), OfProfile("defaults.engine.nodes")))
PROCESSES_PER_NODE = FirstOf((OfJob("engine.processesPerNode"), OfProfile("defaults.engine.processesPerNode")))
OPTIMIZER = FirstOf((OfJob("training.optimizer.name"), OfProfile("defaults.training.optimizer.name")))
ENGINE = FirstOf((OfJob("engine.kind"), OfProfile("defaults.engine.kind")))
WARMUP = FirstOf((OfJob("training.scheduler.warmupSteps"), OfProfile("defaults.training.scheduler.warmupSteps")))


def endpoint_of(section: str) -> Value:
    """Where a section's bucket is, as far as the job decides it: an endpoint of its own, or AWS where neither job nor
    profile name one. Nothing where the profile's endpoint is used."""
    unnamed = Unless(OfProfile("defaults.storage.endpoint"), AwsOf(section))
    return FirstOf((OfJob(f"{section}.storage.endpoint"), unnamed))
