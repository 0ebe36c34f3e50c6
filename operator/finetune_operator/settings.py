"""Settings of the operator, from environment variables FINETUNE_OPERATOR_*."""

from __future__ import annotations

import socket
from typing import Annotated, Literal

from finetune_api.base import DNS_SUBDOMAIN
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What an administrator may choose."""

    model_config = SettingsConfigDict(env_prefix="FINETUNE_OPERATOR_", frozen=True, populate_by_name=True)

    namespace: str = ""
    """The one namespace whose jobs are served. Empty: all of the cluster."""
    operator_class: Annotated[str, Field(max_length=63, pattern=f"^({DNS_SUBDOMAIN.strip('^$')})?$")] = Field(
        default="", validation_alias="FINETUNE_OPERATOR_CLASS"
    )
    """Jobs whose spec.operatorClass is this are served. Empty: those that name none."""
    host: str = "0.0.0.0"  # noqa: S104 - the kubelet's probes and Prometheus come from outside the pod
    """Address of the server for probes and metrics."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port of the server for probes and metrics; 0 takes a free one."""
    lease_namespace: str = "finetune-system"
    """Namespace of the Lease by which one operator at a time works."""
    lease_name: str = "finetune-operator"
    """Name of that Lease."""
    log_format: Literal["json", "text"] = "json"
    """Log lines as JSON, or for reading."""
    trainer_image: str = ""
    """Image of the trainer where a profile names none."""
    pod_name: Annotated[str, Field(min_length=1)] = Field(default_factory=socket.gethostname)
    """Who this operator is, in the Lease and in Events."""
    workers: Annotated[int, Field(ge=1, le=256)] = 16
    """Jobs reconciled at the same time."""
    progress: Literal["direct", "apiProxy", "off"] = "direct"
    """How trainers are asked how far they are: at their pod's address, through the API server (for an operator outside
    the cluster; needs the right to get pods/proxy), or not at all."""
    progress_port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port at which trainers answer /progress."""
    progress_seconds: Annotated[float, Field(gt=0, le=3600)] = 5
    """Shortest time between two questions to the same trainer."""
    resync_seconds: Annotated[float, Field(gt=0, le=86_400)] = 900
    """A job that is not finished is looked at this often even when nothing is heard of it."""
    kueue: bool = False
    """Read Kueue's Workloads, to say in the status why a job waits in its queue."""
    audit_seconds: Annotated[float, Field(gt=0, le=86_400)] = 120
    """What is remembered is compared with the API server this often. A watch that has missed something and stays
    silent for half of it counts as dead."""
