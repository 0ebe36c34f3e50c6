"""Credentials of the three roles, read from mounted files and never shown.

Each role (base model, dataset, output) has its own Secret and so its own session; nothing is taken from one for the
other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from finetune_api.storage import SecretRef

from finetune_trainer.errors import ConfigurationError

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")

# Set by the platform for a pod whose service account stands for a cloud identity.
WORKLOAD_IDENTITY = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")


class Role(Enum):
    """What a place is for. The value is the folder of its credentials and of its volume."""

    BASE_MODEL = "base-model"
    DATASET = "dataset"
    OUTPUT = "output"

    @property
    def field(self) -> str:
        """The section of the spec, as it stands in YAML."""
        return {"base-model": "spec.baseModel", "dataset": "spec.dataset", "output": "spec.output"}[self.value]


@dataclass(frozen=True)
class Credentials:
    """What one role may use. Values are kept out of repr, and so out of logs and tracebacks."""

    role: Role
    secret_name: str | None = None
    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    ambient: bool = True
    """Whether the libraries may look for credentials themselves: environment, profile, workload identity."""

    def require(self, *keys: str) -> None:
        """Raises ConfigurationError unless the Secret has `keys`, or the environment may provide them."""
        missing = [key for key in keys if not self.values.get(key)]
        if not missing:
            return
        if self.secret_name is not None:
            raise ConfigurationError(
                f"{self.role.field}.secretRef.name is {self.secret_name}, but that Secret does not exist in the "
                f"job's namespace or has no key {' and no key '.join(missing)}; create it with these keys"
            )
        if not self.ambient:
            raise ConfigurationError(
                f"{self.role.field}.secretRef is not set and there are no other credentials; name a Secret "
                f"with {' and '.join(missing)}"
            )


def load_credentials(role: Role, secret: SecretRef | None, folder: Path | None) -> Credentials:
    """Reads `<folder>/<role>/<KEY>`.

    `folder` is None on a laptop: then no Secret can be read, and the libraries find credentials themselves.

    Raises:
        ConfigurationError: a Secret is named where there is no cluster to read it from.
    """
    if folder is None:
        if secret is not None:
            raise ConfigurationError(
                f"{role.field}.secretRef.name is {secret.name}, but there is no cluster here to read a Secret from; "
                "remove it to use the credentials of your environment (AWS_PROFILE, AWS_ACCESS_KEY_ID, HF_TOKEN), "
                "or put one file for each key into a folder and set FINETUNE_CREDENTIALS_DIR"
            )
        return Credentials(role)
    if secret is None:
        return Credentials(role, ambient=any(os.environ.get(name) for name in WORKLOAD_IDENTITY))
    files = {key: folder / role.value / key for key in KEYS}
    values = {key: path.read_text("utf-8").strip() for key, path in files.items() if path.is_file()}
    return Credentials(role, secret.name, values, ambient=False)
