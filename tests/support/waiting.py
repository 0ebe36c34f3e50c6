"""Waiting with a deadline. What is waited for is asked again until it holds; the last answer stands in the error."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import tenacity
import yaml
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException

# Deadlines say how long something takes on an idle machine. They are there to end a test that hangs, not to measure:
# a machine that does ten things at once gets more time.
PATIENCE = 4
Thing = TypeVar("Thing")
Object = dict[str, object]


def eventually(ask: Callable[[], Thing], *, seconds: float, on: type[Exception] = AssertionError) -> Thing:
    """What ``ask`` returns once it no longer raises ``on``; after ``seconds`` its last error is raised."""
    # not stamina, which tells the log of each attempt: a test that fails would end in a thousand lines of them
    patient = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(on),
        stop=tenacity.stop_after_delay(seconds * PATIENCE),
        wait=tenacity.wait_exponential(multiplier=0.3, max=2),
        reraise=True,
    )
    return patient(ask)


class Watched:
    """One custom object of group finetune.dev, followed through the API server's watch."""

    def __init__(self, api: client.ApiClient, namespace: str, name: str) -> None:
        self._custom = client.CustomObjectsApi(api)
        self._where = {
            "group": "finetune.dev",
            "version": "v1alpha1",
            "namespace": namespace,
            "plural": "finetunejobs",
        }
        self._name = name

    def now(self) -> Object:
        return self._custom.get_namespaced_custom_object(**self._where, name=self._name)

    def until(self, holds: Callable[[Object], bool], *, seconds: float, what: str) -> Object:
        """The object once ``holds`` says so. Raises AssertionError with its status after ``seconds``."""
        end = time.monotonic() + seconds * PATIENCE
        last: Object = {}
        while (left := end - time.monotonic()) > 0:
            stream = watch.Watch().stream(
                self._custom.list_namespaced_custom_object,
                **self._where,
                field_selector=f"metadata.name={self._name}",
                timeout_seconds=max(1, min(60, int(left))),
            )
            try:
                for event in stream:
                    last = event["object"]
                    if event["type"] != "DELETED" and holds(last):
                        return last
            except ApiException as error:
                if error.status != 410:
                    raise
        status = yaml.safe_dump(last.get("status", "there was no such object"), sort_keys=False)
        raise AssertionError(
            f"{self._name}: {what} did not come within {seconds * PATIENCE:.0f} s. Its status:\n{status}"
        )
