"""What a profile lets a job ask for: each limit with one wording and two projections, as the rules of `rules.py`.

`cel` and `message_cel` become the ValidatingAdmissionPolicy (admission.py), where `params` is the profile; `refusal`
is what the operator and `finetune validate` ask. LIMITS is the whole list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from finetune_api.asked import (
    NODES,
    OPTIMIZER,
    PROCESSES_PER_NODE,
    STEPS,
    WARMUP,
    Asked,
    Namespace,
    OfJob,
    OfProfile,
    endpoint_of,
)
from finetune_api.combinations import OneProcess, OptimizerOf, WarmupEnds
from finetune_api.engine import OPTIMIZERS
from finetune_api.limit import Limit

SHOWN = 400
"""Characters of an allow-list that a message shows: the API server drops messages above 5 KiB."""


class LimitError(ValueError):
    """A job asks for what its profile does not give. The message names each field, its value and the remedy."""


@dataclass(frozen=True)
class OfLimits(Limit):
    """A value held against a field of the profile's limits."""

    limit: str

    @property
    def held_against(self) -> str:
        return f"`limits.{self.limit}`"

    @property
    def variables(self) -> Mapping[str, str]:
        return {**super().variables, self.limit: self._allowed.cel}

    @property
    def _bound(self) -> str:
        return f"variables.{self.limit}"

    @property
    def _allowed(self) -> OfProfile:
        return OfProfile(f"limits.{self.limit}")


@dataclass(frozen=True)
class AtMost(OfLimits):
    """A number that is not above the limit."""

    @property
    def words(self) -> str:
        return (
            f"{self._is}, FineTuneProfile {{profile}} allows at most {{limit}} (limits.{self.limit}); "
            "use {limit} or less"
        )

    @property
    def _within(self) -> str:
        return f"!{self._bound}.hasValue() || {self._value}.value() <= {self._bound}.value()"

    def _exceeded(self, value: object, asked: Asked) -> bool:
        allowed = self._allowed.read(asked)
        return isinstance(value, int) and isinstance(allowed, int) and value > allowed

    @property
    def _parts(self) -> Mapping[str, str]:
        return {**super()._parts, "limit": f"string({self._bound}.value())"}

    def _read_parts(self, value: object, asked: Asked) -> Mapping[str, str]:
        return {**super()._read_parts(value, asked), "limit": str(self._allowed.read(asked))}


@dataclass(frozen=True)
class ChangeableAtMost(AtMost):
    """An AtMost whose field may change after creation."""

    changeable: ClassVar[bool] = True


@dataclass(frozen=True)
class Among(OfLimits):
    """One of a list, letter for letter."""

    when_unset: bool
    """Whether any value will do where the profile has no list; otherwise none will."""
    remedy: str = "use one of them or remove the field"

    @property
    def variables(self) -> Mapping[str, str]:
        return {**super().variables, f"{self.limit}Joined": f"{self._bound}.orValue([]).join(', ')"}

    @property
    def words(self) -> str:
        return f"{self._is}, FineTuneProfile {{profile}} allows {{allowed}} (limits.{self.limit}); {self.remedy}"

    @property
    def _within(self) -> str:
        listed = f"{self._value}.value() in {self._bound}.orValue([])"
        return f"!{self._bound}.hasValue() || {listed}" if self.when_unset else listed

    def _exceeded(self, value: object, asked: Asked) -> bool:
        listed = self._listed(asked)
        return not self.when_unset if listed is None else value not in listed

    def _listed(self, asked: Asked) -> list[str] | None:
        found = self._allowed.read(asked)
        return [str(item) for item in found] if isinstance(found, list | tuple) else None

    @property
    def _parts(self) -> Mapping[str, str]:
        joined = f"{self._bound}Joined"
        shown = f"({joined}.size() > {SHOWN} ? {joined}.substring(0, {SHOWN}) + '…' : {joined})"
        return {**super()._parts, "allowed": f"({self._bound}.hasValue() ? 'only ' + {shown} : 'none')"}

    def _read_parts(self, value: object, asked: Asked) -> Mapping[str, str]:
        listed = self._listed(asked)
        joined = ", ".join(listed or ())
        shown = joined[:SHOWN] + "…" if len(joined) > SHOWN else joined
        return {**super()._read_parts(value, asked), "allowed": f"only {shown}" if listed is not None else "none"}


@dataclass(frozen=True)
class NotWith(OfLimits):
    """A field that cannot be compared with the limit and so excludes it."""

    instead: str

    @property
    def words(self) -> str:
        return (
            f"{self._is}, but FineTuneProfile {{profile}} has limits.{self.limit} and how many steps an epoch has is "
            f"known only later; use {self.instead}"
        )

    @property
    def _within(self) -> str:
        return f"!{self._bound}.hasValue()"

    def _exceeded(self, value: object, asked: Asked) -> bool:
        return self._allowed.read(asked) is not None


SECTIONS = ("baseModel", "dataset", "output")
LIMITS: tuple[Limit, ...] = (
    Among(
        "usedNamespace",
        "metadata.namespace",
        Namespace(),
        "allowedNamespaces",
        when_unset=True,
        remedy="use one of them, or another spec.profileName",
    ),
    AtMost("steps", "spec.training.steps", STEPS, "maxSteps"),
    NotWith("epochs", "spec.training.epochs", OfJob("training.epochs"), "maxSteps", "spec.training.steps"),
    AtMost("nodes", "spec.engine.nodes", NODES, "maxNodes"),
    ChangeableAtMost(
        "deadline",
        "spec.runPolicy.activeDeadlineSeconds",
        OfJob("runPolicy.activeDeadlineSeconds"),
        "maxActiveDeadlineSeconds",
    ),
    Among("image", "spec.image", OfJob("image"), "allowedImages", when_unset=False),
    Among(
        "serviceAccount",
        "spec.serviceAccountName",
        OfJob("serviceAccountName"),
        "allowedServiceAccounts",
        when_unset=False,
    ),
    *(
        Among(
            f"{section}Endpoint",
            f"spec.{section}.storage.endpoint",
            endpoint_of(section),
            "allowedEndpoints",
            when_unset=True,
            remedy="use one of them",
        )
        for section in SECTIONS
    ),
    *(
        Among(
            f"{section}Secret",
            f"spec.{section}.secretRef.name",
            OfJob(f"{section}.secretRef.name"),
            "allowedSecretNames",
            when_unset=True,
        )
        for section in SECTIONS
    ),
    WarmupEnds("warmup", "spec.training.scheduler.warmupSteps", WARMUP),
    OneProcess("nodes", "spec.engine.nodes", NODES),
    OneProcess("processesPerNode", "spec.engine.processesPerNode", PROCESSES_PER_NODE),
    *(OptimizerOf("optimizer", "spec.training.optimizer.name", OPTIMIZER, kind) for kind in OPTIMIZERS),
)


def refusals(asked: Asked) -> tuple[str, ...]:
    """Everything in which the job does not fit its profile, each with field, value and remedy."""
    return tuple(said for limit in LIMITS if (said := limit.refusal(asked)) is not None)


def check_limits(asked: Asked) -> None:
    """Raises LimitError with all that `refusals` finds."""
    found = refusals(asked)
    if found:
        raise LimitError("; ".join(found))
