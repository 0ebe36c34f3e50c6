"""Rules over the fields of one object, each with one wording and two projections: CEL and Python.

Names of fields are given as they stand in YAML (camelCase). `holds` gets a model and looks at what is set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pydantic.alias_generators import to_snake

if TYPE_CHECKING:
    from pydantic import BaseModel


class Rule(Protocol):
    """A statement about an object, decided at admission by CEL and on a laptop in Python."""

    @property
    def message(self) -> str: ...

    @property
    def cel(self) -> str: ...

    def holds(self, model: BaseModel) -> bool: ...


def value_of(model: BaseModel, field: str) -> object:
    return getattr(model, to_snake(field))


@dataclass(frozen=True)
class ExactlyOneOf:
    """A union: one of `fields` is set, and only one."""

    fields: tuple[str, ...]

    @property
    def message(self) -> str:
        return f"set exactly one of {', '.join(self.fields)}"

    @property
    def cel(self) -> str:
        return f"[{', '.join(f'has(self.{f})' for f in self.fields)}].filter(x, x).size() == 1"

    def holds(self, model: BaseModel) -> bool:
        return sum(value_of(model, f) is not None for f in self.fields) == 1


@dataclass(frozen=True)
class AtMostOneOf:
    """`fields` exclude each other."""

    fields: tuple[str, ...]

    @property
    def message(self) -> str:
        return f"set at most one of {', '.join(self.fields)}"

    @property
    def cel(self) -> str:
        return f"[{', '.join(f'has(self.{f})' for f in self.fields)}].filter(x, x).size() <= 1"

    def holds(self, model: BaseModel) -> bool:
        return sum(value_of(model, f) is not None for f in self.fields) <= 1


@dataclass(frozen=True)
class Requires:
    """When `field` is set, `other` must be set too."""

    field: str
    other: str
    because: str

    @property
    def message(self) -> str:
        return f"{self.field} needs {self.other}: {self.because}"

    @property
    def cel(self) -> str:
        return f"!has(self.{self.field}) || has(self.{self.other})"

    def holds(self, model: BaseModel) -> bool:
        return value_of(model, self.field) is None or value_of(model, self.other) is not None


@dataclass(frozen=True)
class NotAbove:
    """Of two numbers, when both are set, the first is not above the second."""

    lower: str
    upper: str

    @property
    def message(self) -> str:
        return f"{self.lower} must not be above {self.upper}"

    @property
    def cel(self) -> str:
        lower, upper = self.lower, self.upper
        return f"!has(self.{lower}) || !has(self.{upper}) || self.{lower} <= self.{upper}"

    def holds(self, model: BaseModel) -> bool:
        lower, upper = value_of(model, self.lower), value_of(model, self.upper)
        if not isinstance(lower, int | float) or not isinstance(upper, int | float):
            return True
        return lower <= upper


@dataclass(frozen=True)
class MultipleOf:
    """A whole number that is a multiple of `factor`."""

    field: str
    factor: int
    because: str

    @property
    def message(self) -> str:
        return f"{self.field} must be a multiple of {self.factor}: {self.because}"

    @property
    def cel(self) -> str:
        return f"!has(self.{self.field}) || self.{self.field} % {self.factor} == 0"

    def holds(self, model: BaseModel) -> bool:
        value = value_of(model, self.field)
        return not isinstance(value, int) or value % self.factor == 0


@dataclass(frozen=True)
class NotYet:
    """`field` is part of the API but nothing carries it out yet: refused, never ignored.

    `allowed` are the values that mean "as it is today" (for lists: every item must be one of them).
    """

    field: str
    use: str
    allowed: tuple[str | int | bool, ...] = ()
    many: bool = False

    @property
    def message(self) -> str:
        if not self.allowed:
            return f"{self.field} is not carried out yet; {self.use}"
        return f"{self.field} can only be {' or '.join(map(_literal, self.allowed))} so far; {self.use}"

    @property
    def cel(self) -> str:
        if not self.allowed:
            return f"!has(self.{self.field})"
        values = f"[{', '.join(_literal(a) for a in self.allowed)}]"
        if self.many:
            return f"!has(self.{self.field}) || self.{self.field}.all(x, x in {values})"
        return f"!has(self.{self.field}) || self.{self.field} in {values}"

    def holds(self, model: BaseModel) -> bool:
        value = value_of(model, self.field)
        if value is None or to_snake(self.field) not in model.model_fields_set:
            return True
        if isinstance(value, list | tuple):
            return bool(self.allowed) and all(item in self.allowed for item in value)
        return value in self.allowed


@dataclass(frozen=True)
class Immutable:
    """`field` cannot be set, changed or removed after creation. Only the API server can decide it."""

    field: str

    @property
    def message(self) -> str:
        return f"{self.field} cannot be changed after creation: delete the job and create it anew"

    @property
    def cel(self) -> str:
        f = self.field
        return f"has(self.{f}) == has(oldSelf.{f}) && (!has(self.{f}) || self.{f} == oldSelf.{f})"

    def holds(self, model: BaseModel) -> bool:
        return True


@dataclass(frozen=True)
class Form:
    """`field` is a string of one of several forms, told in words: a bare regular expression teaches nobody."""

    field: str
    pattern: str
    says: str

    @property
    def message(self) -> str:
        return f"{self.field} must be {self.says}"

    @property
    def cel(self) -> str:
        return f"!has(self.{self.field}) || self.{self.field}.matches({_literal(self.pattern)})"

    def holds(self, model: BaseModel) -> bool:
        value = value_of(model, self.field)
        return not isinstance(value, str) or re.search(self.pattern, value) is not None


@dataclass(frozen=True)
class NotInCluster:
    """Values that begin with `prefix` mean something on a laptop only; the API server refuses them."""

    field: str
    prefix: str
    use: str

    @property
    def message(self) -> str:
        return f"{self.field} with {self.prefix} is for `finetune run` on your own machine; {self.use}"

    @property
    def cel(self) -> str:
        return f"!has(self.{self.field}) || !self.{self.field}.startsWith({_literal(self.prefix)})"

    def holds(self, model: BaseModel) -> bool:
        return True


def _literal(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)
