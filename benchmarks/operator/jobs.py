"""The FineTuneJobs that the benchmark makes, and what it asks the API server about them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.operator.bare import Bare, Object, concurrently

PROFILE = "benchmark"
NOWHERE = "benchmark-nowhere"
"""A profile whose pods fit no node, so that KWOK never touches them."""
CREATORS = 50


def collection(namespace: str) -> str:
    return f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs"


def children(namespace: str) -> str:
    return f"/apis/batch/v1/namespaces/{namespace}/jobs"


def fine_tune_job(name: str, **spec: object) -> Object:
    """As a user would write it."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "profileName": PROFILE,
            "baseModel": {"uri": "builtin://tiny-shapes"},
            "method": {"lora": {"prompt": "a photo of sks dog"}},
            "dataset": {"uri": "s3://pictures/dog/"},
            "output": {"uri": f"s3://models/{name}/", "secretRef": {"name": "models"}},
            **spec,
        },
    }


def profile(name: str, **spec: object) -> Object:
    resources = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}}
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": name},
        "spec": {"image": "trainer.invalid/none:1", "resources": resources, **spec},
    }


def names(count: int) -> list[str]:
    return [f"job-{number:05d}" for number in range(count)]


async def create(api: Bare, namespace: str, count: int, **spec: object) -> None:
    """`count` FineTuneJobs in a new namespace, as fast as they are taken."""
    await api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    path = collection(namespace)
    await concurrently((api.create(path, fine_tune_job(name, **spec)) for name in names(count)), CREATORS)


@dataclass
class Arrivals:
    """When each child Job was first seen by a watch."""

    api: Bare
    namespace: str
    version: str

    async def last(self, count: int) -> float:
        """Monotonic seconds at which `count` child Jobs existed."""
        seen: set[str] = set()
        async for event in self.api.watch(children(self.namespace), self.version, metadata=True):
            if event["type"] == "ADDED":
                seen.add(event["object"]["metadata"]["name"])
                if len(seen) == count:
                    return time.monotonic()
        raise RuntimeError(f"the watch ended with {len(seen)} of {count} child Jobs")


async def until(holds: Callable[[], Any], seconds: float, what: str, every: float = 0.5) -> float:
    """Waits until `holds()` (awaited if need be). Returns the monotonic seconds then."""
    end = time.monotonic() + seconds
    while True:
        answer = holds()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return time.monotonic()
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come within {seconds:.0f} s")
        await asyncio.sleep(every)


async def completed(api: Bare, namespace: str) -> int:
    """How many child Jobs have succeeded, by the API server's own account."""
    return len(await api.list(children(namespace), "fieldSelector=status.successful%3D1", metadata=True))
