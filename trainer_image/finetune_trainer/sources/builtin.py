"""builtin://: models that come with the trainer."""

from __future__ import annotations

from pathlib import Path

import finetune_trainer
from finetune_trainer.errors import ConfigurationError

BUILTIN = Path(finetune_trainer.__file__).parent / "builtin"


def open_builtin(uri: str) -> Path:
    """The folder of a built-in model.

    Raises:
        ConfigurationError: there is none of that name.
    """
    name = uri.removeprefix("builtin://")
    known = sorted(path.parent.name for path in BUILTIN.glob("*/model_index.json"))
    if name not in known:
        raise ConfigurationError(
            f"spec.baseModel.uri is {uri}, but there is no such built-in model; "
            f"use {' or '.join(f'builtin://{k}' for k in known)}"
        )
    return BUILTIN / name
