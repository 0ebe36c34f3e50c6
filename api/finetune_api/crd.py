"""Generates the CustomResourceDefinitions from the models: `python -m finetune_api.crd` (or `make generate`).

JSON Schema as pydantic writes it becomes a *structural* schema as Kubernetes wants it: no references, no unions with
null, no defaults (resolve.py is the only place that chooses a default, and says so in each description), the models'
rules as CEL.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import cast

import yaml
from pydantic import BaseModel

from finetune_api.base import GROUP, VERSION, Model
from finetune_api.job import FineTuneJob
from finetune_api.metadata import NAME_FORM, NAME_LENGTH, NAME_MESSAGE
from finetune_api.profile import FineTuneProfile

Schema = dict[str, object]

NAME_RULE = {
    "rule": f"self.metadata.name.size() <= {NAME_LENGTH} && self.metadata.name.matches('{NAME_FORM}')",
    "message": NAME_MESSAGE,
}
LIST_KEYS = {"conditions": ["type"], "attempts": ["podUid"]}
INT32_MAX = 2_147_483_647


def models_by_name() -> dict[str, type[BaseModel]]:
    """Every model of the API by class name, which is the name pydantic gives to its definition."""
    found: dict[str, type[BaseModel]] = {}
    queue: list[type[BaseModel]] = [Model]
    while queue:
        model = queue.pop()
        found[model.__name__] = model
        queue.extend(model.__subclasses__())
    return found


def structural(root: type[BaseModel], part: str) -> Schema:
    """Structural schema of the field `part` (spec or status) of `root`."""
    whole = cast(Schema, root.model_json_schema(by_alias=True, mode="validation"))
    definitions = cast(dict[str, Schema], whole["$defs"])
    properties = cast(dict[str, Schema], whole["properties"])
    return _convert(properties[part], definitions, models_by_name(), part)


def _convert(schema: Schema, defs: dict[str, Schema], models: dict[str, type[BaseModel]], name: str) -> Schema:
    schema, model = _dereferenced(schema, defs, models)
    kind = cast(str, schema["type"])
    result: Schema = {"type": kind}
    description = _description(schema)
    if description:
        result["description"] = description
    if "const" in schema:
        result["enum"] = [schema["const"]]
    for key in ("enum", "pattern", "minLength", "maxLength", "minItems", "maxItems", "maxProperties"):
        if key in schema:
            result[key] = schema[key]
    _bounds(schema, result)
    if kind == "array":
        result["items"] = _convert(cast(Schema, schema["items"]), defs, models, name)
        keys = LIST_KEYS.get(name)
        result["x-kubernetes-list-type"] = "map" if keys else "atomic"
        if keys:
            result["x-kubernetes-list-map-keys"] = keys
    elif kind == "object" and model is not None:
        fields = cast(dict[str, Schema], schema["properties"])
        result["properties"] = {field: _convert(value, defs, models, field) for field, value in fields.items()}
        if schema.get("required"):
            result["required"] = schema["required"]
        if issubclass(model, Model) and model.rules:
            result["x-kubernetes-validations"] = [{"rule": r.cel, "message": r.message} for r in model.rules]
    elif kind == "object":
        result["additionalProperties"] = _convert(cast(Schema, schema["additionalProperties"]), defs, models, name)
    return result


def _dereferenced(
    schema: Schema, defs: dict[str, Schema], models: dict[str, type[BaseModel]]
) -> tuple[Schema, type[BaseModel] | None]:
    """`schema` without a union with null and without a reference, and the model it stands for."""
    schema = dict(schema)
    if "anyOf" in schema:
        (variant,) = (v for v in cast(list[Schema], schema.pop("anyOf")) if v.get("type") != "null")
        schema = {**variant, **schema}
    if "$ref" not in schema:
        return schema, None
    target = cast(str, schema.pop("$ref")).rsplit("/", 1)[-1]
    return {**defs[target], **schema}, models.get(target)


def _description(schema: Schema) -> str:
    text = inspect.cleandoc(cast(str, schema.get("description", ""))).replace("\n", " ")
    default = schema.get("default")
    if default is None or default == "" or "Default" in text:
        return text
    return f"{text} Default: {_plain(default)}."


def _bounds(schema: Schema, result: Schema) -> None:
    """Bounds in OpenAPI v3's form, where exclusiveMinimum is a flag beside minimum."""
    for end in ("minimum", "maximum"):
        exclusive = "exclusive" + end.capitalize()
        if end in schema:
            result[end] = schema[end]
        if exclusive in schema:
            result[end] = schema[exclusive]
            result[exclusive] = True
    if schema.get("type") == "integer":
        most = schema.get("maximum")
        result["format"] = "int32" if isinstance(most, int) and most <= INT32_MAX else "int64"
    if schema.get("type") == "number":
        result["format"] = "double"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def crd(
    model: type[BaseModel],
    plural: str,
    short: str,
    scope: str,
    columns: list[Schema],
    has_status: bool,
    selectable: tuple[str, ...] = (),
) -> Schema:
    """The whole CustomResourceDefinition of one kind. `selectable`: paths that a field selector may name."""
    kind = model.__name__
    properties: Schema = {
        "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}"},
        "kind": {"type": "string", "description": kind},
        "metadata": {"type": "object"},
        "spec": structural(model, "spec"),
    }
    if has_status:
        properties["status"] = structural(model, "status")
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": columns,
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "description": inspect.cleandoc(model.__doc__ or "").replace("\n", " "),
                "properties": properties,
                "required": ["spec"],
                "x-kubernetes-validations": [NAME_RULE],
            }
        },
    }
    if has_status:
        version["subresources"] = {"status": {}}
    if selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in selectable]
    names = {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": plural,
        "singular": kind.lower(),
        "shortNames": [short],
        "categories": ["finetune"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {"group": GROUP, "names": names, "scope": scope, "versions": [version]},
    }


def _column(name: str, path: str, kind: str = "string", priority: int = 0) -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path}
    return {**column, "priority": priority} if priority else column


AGE = _column("Age", ".metadata.creationTimestamp", "date")


def all_crds() -> dict[str, Schema]:
    """File name → CustomResourceDefinition."""
    job = crd(
        FineTuneJob,
        "finetunejobs",
        "ftj",
        "Namespaced",
        [
            _column("Phase", ".status.phase"),
            _column("Method", ".status.method"),
            _column("Reason", '.status.conditions[?(@.type=="PodsReady")].reason'),
            _column("Progress", ".status.progress.percent"),
            _column("Loss", ".status.progress.loss"),
            AGE,
            _column("Step", ".status.progress.step", "integer", 1),
            _column("Images/s", ".status.progress.imagesPerSecond", "string", 1),
            _column("End", ".status.progress.estimatedEnd", "string", 1),
            _column("Weights", ".status.artifacts.uri", "string", 1),
        ],
        has_status=True,
        selectable=(".spec.operatorClass",),  # each operator asks for the jobs of its class only
    )
    profile = crd(
        FineTuneProfile,
        "finetuneprofiles",
        "ftp",
        "Cluster",
        [_column("Default", ".spec.isDefault", "boolean"), _column("Image", ".spec.image"), AGE],
        has_status=False,
    )
    return {"finetunejobs.yaml": job, "finetuneprofiles.yaml": profile}


def rendered() -> dict[str, str]:
    """Path below the repository → content, of every generated CRD file."""
    header = "# Generated from api/finetune_api by `make generate`. Do not edit.\n"
    files: dict[str, str] = {}
    for name, definition in all_crds().items():
        files[f"crds/{name}"] = header + to_yaml(definition)
        annotated = {**definition, "metadata": {**cast(Schema, definition["metadata"]), **_keep()}}
        # Helm would read {{ in a description as a template; none may contain it.
        body = to_yaml(annotated)
        assert "{{" not in body
        files[f"charts/finetune-operator/templates/crds/{name}"] = (
            header + "{{- if .Values.crds.install }}\n" + body + "{{- end }}\n"
        )
    return files


def _keep() -> Schema:
    """`helm uninstall` must not delete everybody's jobs with their definition."""
    return {"annotations": {"helm.sh/resource-policy": "keep"}}


def to_yaml(value: Schema) -> str:
    """As generated files are written."""
    return yaml.safe_dump(value, sort_keys=False, width=110, allow_unicode=True)


def main() -> None:
    """Writes every generated file below the folder named, or the current one."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for path, content in rendered().items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)


if __name__ == "__main__":
    main()
