"""FineTuneJob, FineTuneProfile and TrainingRun from files, as strictly as the API server would read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from finetune_api import FineTuneJob, FineTuneProfile, TrainingRun
from pydantic import BaseModel, ValidationError

from finetune_trainer import problems
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.problems import MISSING, Problem, problems_of

M = TypeVar("M", bound=BaseModel)

KINDS: dict[str, type[BaseModel]] = {
    "FineTuneJob": FineTuneJob,
    "FineTuneProfile": FineTuneProfile,
    "TrainingRun": TrainingRun,
}


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, as YAML 1.2 and kubectl do; PyYAML follows YAML 1.1 and wants 1.0e-4."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class DocumentError(ConfigurationError):
    """A document that cannot be used. Each line of the message is one problem."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Document:
    """One YAML document of a file, and where its parts stand."""

    file: Path
    node: yaml.Node
    data: object

    @property
    def kind(self) -> str:
        return str(self.data.get("kind", "")) if isinstance(self.data, dict) else ""

    def error(self, *found: Problem) -> DocumentError:
        """Problems with file and line."""
        return DocumentError([f"{self.file}:{_line(self.node, p.path)}: {p.text}" for p in found])

    def parsed(self, model: type[M]) -> M:
        """The document as `model`. Raises DocumentError with every problem."""
        try:
            # Strict JSON has the API server's eyes: no "3" for 3, and no names in snake_case.
            text = json.dumps(self.data, default=str)
            return model.model_validate_json(text, strict=True, by_alias=True, by_name=False)
        except ValidationError as error:
            raise self.error(*problems_of(error, model)) from error


def read_documents(file: Path) -> list[Document]:
    """All documents of a YAML or JSON file, each of a kind that we know.

    Raises:
        DocumentError: no file, no YAML, a key that stands twice, or an unknown kind.
    """
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DocumentError([f"{file}: cannot be read: {why}"]) from error
    try:
        documents = [Document(file, node, data) for node, data in _nodes(text) if data is not None]
    except yaml.YAMLError as error:
        raise DocumentError([f"{file}{_place(error)}"]) from error
    for document in documents:
        _check(document)
    return documents


def _nodes(text: str) -> Iterator[tuple[yaml.Node, object]]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            yield node, loader.construct_document(node)
    finally:
        loader.dispose()


def _check(document: Document) -> None:
    twice = list(_duplicates(document.node, ()))
    if twice:
        raise document.error(*(Problem(path, MISSING, "stands twice; remove one") for path in twice))
    if document.kind not in KINDS:
        known = f"must be {', '.join(KINDS)}"
        value = document.data.get("kind", MISSING) if isinstance(document.data, dict) else MISSING
        raise document.error(Problem(("kind",), value, known))


def _duplicates(node: yaml.Node, path: problems.Path) -> Iterator[problems.Path]:
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            here = (*path, str(key.value))
            if here in seen:
                yield here
            seen.add(here)
            yield from _duplicates(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _duplicates(item, (*path, index))


def _line(node: yaml.Node, path: problems.Path) -> int:
    """Line of the last part of `path` that is in the file, counted from 1. The last of equal keys counts."""
    line = node.start_mark.line + 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            entry = next(((k, v) for k, v in reversed(node.value) if k.value == part), None)
            if entry is None:
                return line
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _place(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    return f":{mark.line + 1}:{mark.column + 1}: not valid YAML: {what}" if mark else f": not valid YAML: {what}"
