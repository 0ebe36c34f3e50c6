"""What a profile lets a job ask for: each limit with one wording and two projections, as the rules of `rules.py`.

`cel` and `message_cel` become the ValidatingAdmissionPolicy (admission.py), where `params` is the profile; `refusal`
is what the operator and `finetune validate` ask. LIMITS is the whole list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import ClassVar

from finetune_api.asked import (
    ENGINE,
    NODES,
    PROCESSES_PER_NODE,
    STEPS,
    WARMUP,
    Asked,
    Namespace,
    OfJob,
    OfProfile,
    Value,
    endpoint_of,
)
from finetune_api.engine import ONE_PROCESS
from finetune_api.rules import literal

SHOWN = 400
"""Characters of an allow-list that a message shows: the API server drops messages above 5 KiB."""


class LimitError(ValueError):
    """A job asks for what its profile does not give. The message names each field, its value and the remedy."""


@dataclass(frozen=True)
class Limit(ABC):
    """A bound on one value of a job."""

    variable: str
    """Name of the value in the policy."""
    field: str
    """The field as people know it."""
    value: Value
    changeable: ClassVar[bool] = False
    """Whether the field may change after creation. Then a change is judged too, and only a change."""

    @property
    @abstractmethod
    def held_against(self) -> str:
        """What the value must fit, for the reference."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The refusal, with {value}, {by_default}, {profile} and whatever else `_parts` names."""

    @property
    @abstractmethod
    def _within(self) -> str:
        """CEL: true where the value, which is set, is within the limit."""

    @abstractmethod
    def _exceeded(self, value: object, asked: Asked) -> bool:
        """The opposite of `_within`, in Python."""

    @property
    def variables(self) -> Mapping[str, str]:
        """What the expressions use: name → CEL."""
        return {self.variable: self.value.cel}

    @property
    def _parts(self) -> Mapping[str, str]:
        """Placeholder of `words` → CEL of a string."""
        return {
            "value": f"string({self._value}.value())",
            "by_default": f"({self._own.cel}.hasValue() ? '' : ' by default')",
            "profile": "params.metadata.name",
        }

    def _read_parts(self, value: object, asked: Asked) -> Mapping[str, str]:
        """The same in Python."""
        return {
            "value": str(value),
            "by_default": "" if self._own.read(asked) is not None else " by default",
            "profile": asked.profile_name or "(built-in)",
        }

    @property
    def _is(self) -> str:
        """How `words` begin: who chose the value matters where it need not be the job."""
        always_own = isinstance(self.value, OfJob | Namespace)
        return f"{self.field} is {{value}}" if always_own else f"{self.field} is {{value}}{{by_default}}"

    @property
    def _own(self) -> OfJob:
        return OfJob(self.field.removeprefix("spec."))

    @property
    def _value(self) -> str:
        return f"variables.{self.variable}"

    @property
    def cel(self) -> str:
        """True where the job may be created or changed like this."""
        within = f"!{self._value}.hasValue() || {self._within}"
        if not self.changeable:
            return f"oldObject != null || {within}"
        new = self._own.cel
        return f"(oldObject != null && {new} == {new.replace('object.', 'oldObject.', 1)}) || {within}"

    @property
    def message_cel(self) -> str:
        """The refusal, as a CEL expression of a string."""
        pieces = []
        for text, placeholder, _, _ in Formatter().parse(self.words):
            pieces += [literal(text)] if text else []
            pieces += [self._parts[placeholder]] if placeholder else []
        return " + ".join(pieces)

    def refusal(self, asked: Asked) -> str | None:
        """The refusal; None where nothing is wrong."""
        value = self.value.read(asked)
        if value is None or not self._exceeded(value, asked):
            return None
        return self.words.format_map(self._read_parts(value, asked))


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


@dataclass(frozen=True)
class WarmupEnds(Limit):
    """Job and profile together make a warm-up that ends before the training does."""

    @property
    def held_against(self) -> str:
        return "the length of the training"

    @property
    def words(self) -> str:
        return (
            f"{self._is} but the training has {{steps}} steps: the learning rate would "
            "never arrive; use fewer warm-up steps"
        )

    @property
    def _within(self) -> str:
        return f"!variables.steps.hasValue() || {self._value}.value() < variables.steps.value()"

    def _exceeded(self, value: object, asked: Asked) -> bool:
        steps = STEPS.read(asked)
        return isinstance(value, int) and isinstance(steps, int) and value >= steps

    @property
    def _parts(self) -> Mapping[str, str]:
        return {**super()._parts, "steps": "string(variables.steps.value())"}

    def _read_parts(self, value: object, asked: Asked) -> Mapping[str, str]:
        return {**super()._read_parts(value, asked), "steps": str(STEPS.read(asked))}


@dataclass(frozen=True)
class OneProcess(Limit):
    """Job and profile together make a group, of an engine that works in one process."""

    @property
    def held_against(self) -> str:
        return "the engine"

    @property
    def words(self) -> str:
        return f"{self._is} but the engine's kind is {{kind}}, which works in one process; use engine.kind: Auto"

    @property
    def variables(self) -> Mapping[str, str]:
        return {**super().variables, "engine": ENGINE.cel}

    @property
    def _within(self) -> str:
        kinds = f"[{', '.join(map(literal, ONE_PROCESS))}]"
        return f"{self._value}.value() <= 1 || !(variables.engine.orValue('Auto') in {kinds})"

    def _exceeded(self, value: object, asked: Asked) -> bool:
        return isinstance(value, int) and value > 1 and ENGINE.read(asked) in ONE_PROCESS

    @property
    def _parts(self) -> Mapping[str, str]:
        return {**super()._parts, "kind": "variables.engine.value()"}

    def _read_parts(self, value: object, asked: Asked) -> Mapping[str, str]:
        return {**super()._read_parts(value, asked), "kind": str(ENGINE.read(asked))}


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
)


def refusals(asked: Asked) -> tuple[str, ...]:
    """Everything in which the job does not fit its profile, each with field, value and remedy."""
    return tuple(said for limit in LIMITS if (said := limit.refusal(asked)) is not None)


def check_limits(asked: Asked) -> None:
    """Raises LimitError with all that `refusals` finds."""
    found = refusals(asked)
    if found:
        raise LimitError("; ".join(found))
