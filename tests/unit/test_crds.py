"""The CRDs are what the models say, and keep to the conventions of Kubernetes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from finetune_api.crd import all_crds, rendered

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted(rendered()))
def test_committed_file_is_up_to_date(path: str) -> None:
    assert (ROOT / path).read_text() == rendered()[path], "stale: run `make generate`"


def walk(schema: dict, path: str) -> Iterator[tuple[str, dict]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(schema["additionalProperties"], f"{path}{{}}")


def fields() -> Iterator[tuple[str, dict]]:
    for crd in all_crds().values():
        (version,) = crd["spec"]["versions"]
        root = version["schema"]["openAPIV3Schema"]["properties"]
        for part in ("spec", "status"):
            if part in root:
                yield from walk(root[part], f"{crd['spec']['names']['kind']}.{part}")


def test_every_field_reads_like_documentation() -> None:
    undocumented = [
        path for path, schema in fields() if not path.endswith(("[]", "{}")) and "description" not in schema
    ]
    assert undocumented == []


def test_bounds_everywhere() -> None:
    """CEL's cost estimate needs them, and so does the 512 KiB that a TrainingRun may have."""
    unbounded = []
    for path, schema in fields():
        match schema["type"]:
            case "string" if "enum" not in schema and "maxLength" not in schema:
                unbounded.append(path)
            case "array" if "maxItems" not in schema:
                unbounded.append(path)
            case "object" if "additionalProperties" in schema and "maxProperties" not in schema:
                unbounded.append(path)
            case "integer" | "number" if ".spec" in path and not {"minimum", "maximum"} <= schema.keys():
                unbounded.append(path)
    assert unbounded == []


def test_defaults_are_chosen_in_one_place_only() -> None:
    """A default in the CRD would hide a profile's: resolve.py has them all."""
    assert [path for path, schema in fields() if "default" in schema] == []


def test_lists_say_how_they_merge() -> None:
    assert [p for p, s in fields() if s["type"] == "array" and "x-kubernetes-list-type" not in s] == []
