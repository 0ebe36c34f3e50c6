"""What a limit is: one wording and two projections, of one value of a job and its profile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter
from typing import ClassVar

from finetune_api.asked import Asked, Namespace, OfJob, Value
from finetune_api.rules import literal


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
