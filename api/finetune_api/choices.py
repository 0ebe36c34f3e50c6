"""Rules about what a choice in one field asks of other fields; as those of rules.py, each with CEL and Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_api.rules import literal, present, value_of

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class MoreThanOneNotWith:
    """A count above 1 makes no sense with some choices of `other`, none of which is its default."""

    field: str
    other: str
    choices: tuple[str, ...]
    because: str

    @property
    def message(self) -> str:
        return f"{self.field} above 1 cannot be used with {self.other}: {' or '.join(self.choices)}, {self.because}"

    @property
    def cel(self) -> str:
        field, other = self.field, self.other
        chosen = f"has(self.{other}) && self.{other} in {_listed(self.choices)}"
        return f"!has(self.{field}) || self.{field} <= 1 || !({chosen})"

    def holds(self, model: BaseModel) -> bool:
        count = value_of(model, self.field)
        return not isinstance(count, int) or count <= 1 or value_of(model, self.other) not in self.choices


@dataclass(frozen=True)
class ChoiceNeeds:
    """Where `field` is one of `choices`, one of `any_of` holds: a field has this value, or, where the value is None, is
    set at all. None of these values is its field's default."""

    field: str
    choices: tuple[str, ...]
    any_of: tuple[tuple[str, str | int | None], ...]
    because: str

    @property
    def message(self) -> str:
        needed = (name if value is None else f"{name}: {value}" for name, value in self.any_of)
        return f"{self.field}: {' or '.join(self.choices)} needs {' or '.join(needed)}, {self.because}"

    @property
    def cel(self) -> str:
        needed = (
            present(name) if value is None else f"({present(name)} && self.{name} == {literal(value)})"
            for name, value in self.any_of
        )
        chosen = f"has(self.{self.field}) && self.{self.field} in {_listed(self.choices)}"
        return f"!({chosen}) || {' || '.join(needed)}"

    def holds(self, model: BaseModel) -> bool:
        if value_of(model, self.field) not in self.choices:
            return True
        found = ((value_of(model, name), value) for name, value in self.any_of)
        return any(has is not None if value is None else has == value for has, value in found)


@dataclass(frozen=True)
class OnlyForChoice:
    """`field` can be set only where one of `others` is `choice`, which is no field's default."""

    field: str
    others: tuple[str, ...]
    choice: str

    @property
    def message(self) -> str:
        return f"{self.field} can only be set with {' or '.join(f'{other}: {self.choice}' for other in self.others)}"

    @property
    def cel(self) -> str:
        chosen = (f"(has(self.{other}) && self.{other} == {literal(self.choice)})" for other in self.others)
        return f"!has(self.{self.field}) || {' || '.join(chosen)}"

    def holds(self, model: BaseModel) -> bool:
        if value_of(model, self.field) is None:
            return True
        return any(value_of(model, other) == self.choice for other in self.others)


def _listed(values: tuple[str, ...]) -> str:
    return f"[{', '.join(literal(value) for value in values)}]"
