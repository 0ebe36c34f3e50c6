"""Rules over the fields of one object, each with one wording and two projections: CEL and Python.

Names of fields are given as they stand in YAML (camelCase); a dotted one is a field of an object within. `holds` gets
a model and looks at what is set.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

from pydantic import alias_generators

if TYPE_CHECKING:
    from pydantic import BaseModel

to_snake = cache(alias_generators.to_snake)
"""Rules ask for the same few fields of every object: four fifths of the time of a check went into their names."""


class Rule(Protocol):
    """A statement about an object, decided at admission by CEL and on a laptop in Python."""

    @property
    def message(self) -> str: ...

    @property
    def cel(self) -> str: ...

    def holds(self, model: BaseModel) -> bool: ...


def value_of(model: BaseModel, field: str) -> object:
    """Value of a field; None where it, or an object on the way to it, is not set."""
    found: object = model
    for name in field.split("."):
        found = getattr(found, to_snake(name), None)
    return found


def present(field: str, root: str = "self") -> str:
    """CEL: whether a field is set, and every object on the way to it."""
    names = field.split(".")
    return " && ".join(f"has({root}.{'.'.join(names[: i + 1])})" for i in range(len(names)))


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
        return f"[{', '.join(present(f) for f in self.fields)}].filter(x, x).size() <= 1"

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
    when_unset: tuple[int, int] | None = None
    """What the two are where they are not set; None: then nothing is compared."""

    @property
    def message(self) -> str:
        return f"{self.lower} must not be above {self.upper}"

    @property
    def cel(self) -> str:
        lower, upper = self.lower, self.upper
        if self.when_unset is not None:
            sides = zip((lower, upper), self.when_unset, strict=True)
            return " <= ".join(f"({present(field)} ? self.{field} : {value})" for field, value in sides)
        return f"!({present(lower)}) || !({present(upper)}) || self.{lower} <= self.{upper}"

    def holds(self, model: BaseModel) -> bool:
        lower, upper = value_of(model, self.lower), value_of(model, self.upper)
        if not isinstance(lower, int | float) or not isinstance(upper, int | float):
            return True
        return lower <= upper


@dataclass(frozen=True)
class Below:
    """Of two whole numbers, when both are set, the first is smaller than the second."""

    lower: str
    upper: str
    because: str

    @property
    def message(self) -> str:
        return f"{self.lower} must be below {self.upper}: {self.because}"

    @property
    def cel(self) -> str:
        lower, upper = self.lower, self.upper
        return f"!({present(lower)}) || !({present(upper)}) || self.{lower} < self.{upper}"

    def holds(self, model: BaseModel) -> bool:
        lower, upper = value_of(model, self.lower), value_of(model, self.upper)
        return not isinstance(lower, int) or not isinstance(upper, int) or lower < upper


@dataclass(frozen=True)
class MoreThanOneNeeds:
    """A count above 1 makes sense with one choice of `other` only, which is not its default."""

    field: str
    other: str
    choice: str
    because: str

    @property
    def message(self) -> str:
        return f"{self.field} above 1 needs {self.other}: {self.choice}, {self.because}"

    @property
    def cel(self) -> str:
        field, other = self.field, self.other
        chosen = f"has(self.{other}) && self.{other} == {literal(self.choice)}"
        return f"!has(self.{field}) || self.{field} <= 1 || ({chosen})"

    def holds(self, model: BaseModel) -> bool:
        count = value_of(model, self.field)
        return not isinstance(count, int) or count <= 1 or value_of(model, self.other) == self.choice


@dataclass(frozen=True)
class OnlyWhen:
    """`field` can be set only where `other` has this value."""

    field: str
    other: str
    value: str | bool
    is_default: bool = False
    """Whether `other` has this value when it is not set."""

    @property
    def message(self) -> str:
        shown = literal(self.value) if isinstance(self.value, bool) else self.value
        return f"{self.field} can only be set with {self.other}: {shown}"

    @property
    def cel(self) -> str:
        other = self.other
        equal = f"self.{other} == {literal(self.value)}"
        chosen = f"(!has(self.{other}) || {equal})" if self.is_default else f"(has(self.{other}) && {equal})"
        return f"!has(self.{self.field}) || {chosen}"

    def holds(self, model: BaseModel) -> bool:
        return value_of(model, self.field) is None or value_of(model, self.other) == self.value


@dataclass(frozen=True)
class UnsetNeeds:
    """Where `field` is not set, `other` has this value, which is not its default."""

    field: str
    other: str
    value: str

    @property
    def message(self) -> str:
        return f"without {self.field} set {self.other}: {self.value}"

    @property
    def cel(self) -> str:
        other = self.other
        return f"has(self.{self.field}) || (has(self.{other}) && self.{other} == {literal(self.value)})"

    def holds(self, model: BaseModel) -> bool:
        return value_of(model, self.field) is not None or value_of(model, self.other) == self.value


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
class AmongWhen:
    """Where `chosen` is set, every item of the list `field` is one of `allowed`."""

    field: str
    chosen: str
    allowed: tuple[str, ...]

    @property
    def message(self) -> str:
        return f"{self.field} of {self.chosen.rpartition('.')[2]} can only be {' or '.join(self.allowed)}"

    @property
    def cel(self) -> str:
        values = f"[{', '.join(literal(a) for a in self.allowed)}]"
        return f"!({present(self.chosen)}) || !({present(self.field)}) || self.{self.field}.all(x, x in {values})"

    def holds(self, model: BaseModel) -> bool:
        value = value_of(model, self.field)
        if value_of(model, self.chosen) is None or not isinstance(value, list | tuple):
            return True
        return all(item in self.allowed for item in value)


@dataclass(frozen=True)
class NotYet:
    """`field` is part of the API but nothing carries it out yet: refused, never ignored."""

    field: str
    use: str

    @property
    def message(self) -> str:
        return f"{self.field} is not carried out yet; {self.use}"

    @property
    def cel(self) -> str:
        return f"!has(self.{self.field})"

    def holds(self, model: BaseModel) -> bool:
        return value_of(model, self.field) is None or to_snake(self.field) not in model.model_fields_set


@dataclass(frozen=True)
class Immutable:
    """`field` cannot be set, changed or removed after creation. Only the API server can decide it.

    It must be a rule of an object that is always there: a rule of one that comes or goes is not asked then.
    """

    field: str

    @property
    def message(self) -> str:
        return f"{self.field} cannot be changed after creation: delete the job and create it anew"

    @property
    def cel(self) -> str:
        f = self.field
        now, then = present(f), present(f, "oldSelf")
        return f"({now}) == ({then}) && (!({now}) || self.{f} == oldSelf.{f})"

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
        return f"!has(self.{self.field}) || self.{self.field}.matches({literal(self.pattern)})"

    def holds(self, model: BaseModel) -> bool:
        value = value_of(model, self.field)
        return not isinstance(value, str) or re.search(self.pattern, value) is not None


@dataclass(frozen=True)
class NotOfForm:
    """`field` is a string of none of the forms in `pattern`, told in words."""

    field: str
    pattern: str
    says: str

    @property
    def message(self) -> str:
        return f"{self.field} must not be {self.says}"

    @property
    def cel(self) -> str:
        return f"!has(self.{self.field}) || !self.{self.field}.matches({literal(self.pattern)})"

    def holds(self, model: BaseModel) -> bool:
        value = value_of(model, self.field)
        return not isinstance(value, str) or re.search(self.pattern, value) is None


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
        return f"!has(self.{self.field}) || !self.{self.field}.startsWith({literal(self.prefix)})"

    def holds(self, model: BaseModel) -> bool:
        return True


def literal(value: str | int | bool) -> str:
    """`value` as it is written in CEL."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value)
