"""What is wrong with a document, in words that name the field as it stands in YAML, the value and the remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from finetune_api.base import RulesBroken
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Path = tuple[str | int, ...]

MISSING = object()

KINDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text; put it in quotes",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of names to values",
    "model_type": "must be a mapping of fields",
    "model_attributes_type": "must be a mapping of fields",
    "finite_number": "must be a finite number",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    path: Path
    """Keys and indices from the root of the document."""
    value: object
    """What was given, or MISSING."""
    message: str

    @property
    def text(self) -> str:
        """`spec.training.batchSize is 0: must be at least 1`."""
        where = field_name(self.path)
        if self.value is MISSING:
            return f"{where}: {self.message}" if where else self.message
        return f"{where} is {_shown(self.value)}: {self.message}"


def field_name(path: Path) -> str:
    """`spec.validation.prompts[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def problems_of(error: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """Every problem that pydantic found in a document of type `root`."""
    return [problem for detail in error.errors() if not _follows(detail) for problem in _problems(detail, root)]


def _follows(detail: ErrorDetails) -> bool:
    """Whether it is only what pydantic makes of a list after it took the bad items out: those have their own words."""
    return detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]


def _problems(detail: ErrorDetails, root: type[BaseModel]) -> Iterator[Problem]:
    path: Path = detail["loc"]
    kind = detail["type"]
    value = detail["input"]
    context: dict[str, Any] = detail.get("ctx", {})
    if kind == "missing":
        yield Problem(path, MISSING, "missing; add it")
    elif kind == "extra_forbidden":
        yield Problem(path, MISSING, f"there is no such field{_suggestion(path, root)}")
    elif kind == "value_error" and isinstance(context.get("error"), RulesBroken):
        for rule in context["error"].rules:
            field = getattr(rule, "field", None)
            known = isinstance(field, str) and isinstance(value, dict) and field in value
            yield Problem((*path, field), value[field], rule.message) if known else Problem(path, MISSING, rule.message)
    elif kind == "literal_error":
        yield Problem(path, value, f"must be {context['expected']}{_nearest_literal(value, context['expected'])}")
    else:
        yield Problem(path, value, KINDS.get(kind) or _bound(kind, context) or detail["msg"])


def _bound(kind: str, context: dict[str, Any]) -> str | None:
    """Numbers and lengths out of bounds, and strings of the wrong form."""
    match kind:
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "greater_than":
            return f"must be more than {context['gt']:g}"
        case "less_than_equal":
            return f"must be at most {context['le']:g}"
        case "less_than":
            return f"must be less than {context['lt']:g}"
        case "string_too_short":
            return "must not be empty"
        case "string_too_long":
            return f"must have at most {context['max_length']} characters"
        case "too_short":
            return f"must have at least {context['min_length']} items"
        case "too_long":
            return f"must have at most {context['max_length']} items"
        case "string_pattern_mismatch":
            return f"must have the form {context['pattern']}"
    return None


def _suggestion(path: Path, root: type[BaseModel]) -> str:
    model = _model_at(root, path[:-1])
    if model is None:
        return "; remove it"
    names = [field.alias or name for name, field in model.model_fields.items()]
    # case and underscores are the commonest slips: compare without them
    plain = {name.lower(): name for name in names}
    wrong = str(path[-1]).replace("_", "").replace("-", "").lower()
    near = get_close_matches(wrong, plain, n=1)
    return f"; did you mean {plain[near[0]]}?" if near else f"; there are {', '.join(names)}"


def _model_at(root: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """The model that stands at `path` in a document of type `root`."""
    model: type[BaseModel] | None = root
    for part in path:
        if isinstance(part, int):
            continue  # an item of a list is of the type that the list's field names
        if model is None:
            return None
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        model = _model_in(fields[part].annotation) if part in fields else None
    return model


def _model_in(annotation: object) -> type[BaseModel] | None:
    """The model within `X | None`, `Annotated[X, …]` or `tuple[X, …]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)


def _nearest_literal(value: object, expected: str) -> str:
    choices = [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]
    lower = {choice.lower(): choice for choice in choices}
    near = get_close_matches(str(value).lower(), lower, n=1)
    return f"; did you mean {lower[near[0]]}?" if near else ""


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:59]}…"
