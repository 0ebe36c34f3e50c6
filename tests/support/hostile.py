"""Arbitrary FineTuneJobs and FineTuneProfiles that the API takes, drawn from its schema: a field that is added later is
drawn too. Every text carries the mark of who wrote it, so that a test can see where it ends up."""

from __future__ import annotations

import re
from typing import Any

from finetune_api import FineTuneJobSpec, FineTuneProfileSpec
from finetune_api.base import Model, RulesBroken
from finetune_api.base_model import BASE_MODEL_FORM
from finetune_api.crd import Schema, structural
from finetune_api.dataset import DATASET_FORM
from finetune_api.engine import NVME_FORM
from finetune_api.job import FineTuneJob
from finetune_api.methods import FILE_FORM
from finetune_api.outputs import ENCODER_FORM, OUTPUT_FORM
from finetune_api.profile import FineTuneProfile
from finetune_api.rules import UnsetNeeds
from hypothesis import strategies as st
from pydantic import ValidationError

USER, ADMIN = "zzuser", "zzadmin"
TEXTS = (
    "{}",
    "{}-1.b",
    "$({})",
    "$(id) {}",
    "`{}`; rm -rf /",
    "{}\n--privileged",
    '{}","securityContext":{{"privileged":true}}',
    "{{{{ {} }}}}",
    "../../{}",
    "--{}",
    "{}=1",
    "https://{}:8000",
    "http://{}/$(id)",
    "registry.example/{}:1",
    "s3://{}/../..",
    "s3://{}-b/$(id)/",
    "pvc://{}/../../etc",
    "pvc://{}",
    "hf://{}/$",
    "hf://{}/x",
    "builtin://{}",
    "/{}",
    "/etc/{}",
    "12Gi",
    "1",
)
FORMS = {
    "baseModel.uri": BASE_MODEL_FORM,
    "dataset.uri": DATASET_FORM,
    "output.uri": OUTPUT_FORM,
    "continueFrom": FILE_FORM,
    "initialEmbeddingUri": FILE_FORM,
    "encoderUri": ENCODER_FORM,
    "nvmePath": NVME_FORM,
}
SCHEMAS = {USER: structural(FineTuneJob, "spec"), ADMIN: structural(FineTuneProfile, "spec")}
MODELS: dict[str, type[Model]] = {USER: FineTuneJobSpec, ADMIN: FineTuneProfileSpec}


def texts(schema: Schema, mark: str, name: str) -> st.SearchStrategy[str]:
    """Texts with the mark that the schema allows."""
    pattern = str(schema.get("pattern", ""))
    pattern = FORMS.get(name, pattern)
    longest = schema.get("maxLength", 1000)
    fitting = [text for form in TEXTS if re.search(pattern, text := form.format(mark)) and len(text) <= longest]
    assert fitting, f"no hostile text suits {name} {pattern}"
    return st.sampled_from(fitting)


def values(schema: Schema, mark: str, name: str = "") -> st.SearchStrategy[Any]:
    """Everything that a field of this schema may hold, each object with any of its fields."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("minimum", 0), min(schema.get("maximum", 9), 10**6))
        case "number":
            low, high = schema.get("minimum", 0), schema.get("maximum", 1)
            return st.sampled_from([low + (high - low) * part for part in (0.25, 0.5, 0.75)])
        case "string":
            return texts(schema, mark, name)
        case "array":
            return st.lists(values(schema["items"], mark, name), min_size=schema.get("minItems", 0), max_size=2)
    if "additionalProperties" in schema:
        inner = values(schema["additionalProperties"], mark, name)
        return st.dictionaries(st.sampled_from([f"{mark}.example/gpu", "cpu", "memory"]), inner, max_size=2)
    path = {field: f"{name}.{field}" if field == "uri" else field for field in schema["properties"]}
    fields = {field: values(inner, mark, path[field]) for field, inner in schema["properties"].items()}
    required = set(schema.get("required", ()))
    if name == "method":
        return st.one_of([st.fixed_dictionaries({field: fields[field]}) for field in fields])
    return st.fixed_dictionaries(
        {field: fields[field] for field in fields if field in required},
        optional={field: fields[field] for field in fields if field not in required},
    )


def mended(spec: dict[str, Any], model: type[Model]) -> dict[str, Any] | None:
    """`spec` without what breaks a rule of the API; None where there is no mending it."""
    for _ in range(40):
        try:
            model.model_validate(spec)
        except ValidationError as error:
            problem = error.errors()[0]
            broken = problem.get("ctx", {}).get("error")
            if not isinstance(broken, RulesBroken):
                return None
            if not _take_out(spec, [str(part) for part in problem["loc"]], broken):
                return None
        else:
            return spec
    return None


def _take_out(spec: dict[str, Any], where: list[str], broken: RulesBroken) -> bool:
    """Removes the first field that a broken rule speaks of and that is there; where one is wanted, puts it in."""
    target: Any = spec
    for part in where:
        target = target[int(part)] if isinstance(target, list) else target[part]
    for rule in broken.rules:
        if isinstance(rule, UnsetNeeds):
            target[rule.other] = rule.value
            return True
        named = [getattr(rule, "field", None), getattr(rule, "lower", None), *getattr(rule, "fields", ())]
        for path in filter(None, named):
            inner, *rest = str(path).split(".")
            if inner in target:
                if rest and isinstance(target[inner], dict):
                    target[inner].pop(rest[0], None)
                else:
                    del target[inner]
                return True
    return False


def specs(mark: str) -> st.SearchStrategy[dict[str, Any]]:
    """Specs of jobs (USER) or profiles (ADMIN) that the API takes."""
    found = values(SCHEMAS[mark], mark).map(lambda spec: mended(spec, MODELS[mark]))
    return found.filter(lambda spec: spec is not None)
