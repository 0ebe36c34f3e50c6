"""accelerate's configuration files, and what `finetune from-accelerate` prints of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml
from finetune_api.base import Model
from finetune_api.engine import EngineSpec
from finetune_api.training import TrainingSpec
from pydantic import ValidationError

from finetune_trainer.errors import ConfigurationError, first_line
from finetune_trainer.from_accelerate.configuration import translated
from finetune_trainer.problems import problems_of


def spec_of(file: Path) -> str:
    """YAML to put under `spec:` of a FineTuneJob, for the accelerate configuration in `file`. A DeepSpeed JSON that it
    names is looked for beside it.

    Raises:
        ConfigurationError: it cannot be read, says what has no counterpart here, or what does not fit together.
    """
    config = _read(file)
    section = config.get("deepspeed_config")
    named = section.get("deepspeed_config_file") if isinstance(section, Mapping) else None
    other = file.parent / str(named)
    result = translated(config, _read(other) if named is not None and other.is_file() else None)
    _check(EngineSpec, result.engine, "engine")
    _check(TrainingSpec, result.training, "training")
    sections = {"engine": result.engine, "training": result.training}
    return yaml.safe_dump({name: fields for name, fields in sections.items() if fields}, sort_keys=False)


def _read(file: Path) -> dict[str, object]:
    try:
        text = file.read_text("utf-8")
        # YAML 1.1 has other numbers than JSON: 1e-6 is a text there
        document = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{file}: cannot be read: {first_line(error)}") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{file}: has no fields, so it is no configuration of accelerate")
    return document


def _check(model: type[Model], fields: dict[str, object], name: str) -> None:
    try:
        model.model_validate_json(json.dumps(fields), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        lines = [f"{name}.{problem.text}" for problem in problems_of(error, model)]
        raise ConfigurationError("\n".join(lines)) from error
