"""Carries out a plan's actions. Every write is safe to repeat: creation meets what exists, deletion names a UID."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from finetune_api.training_run import RunIdentity

from finetune_operator.client import (
    ApiError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    Kube,
    NotFoundError,
    Object,
)
from finetune_operator.policies.readiness import QUOTA, Readiness, no, refused
from finetune_operator.projections import Key, child_state, controller_uid, job_state
from finetune_operator.reconcile.actions import (
    Action,
    CreateChild,
    CreateSnapshot,
    DeleteChild,
    DeleteJob,
    DeletePod,
    SetBackoffLimit,
)
from finetune_operator.resources import CONFIGMAPS, FINETUNEJOBS, JOBS, PODS, SERVICES, Resource
from finetune_operator.scope import Scope
from finetune_operator.specs.configmap import snapshot_config_map
from finetune_operator.specs.job import training_job
from finetune_operator.specs.naming import snapshot_name
from finetune_operator.specs.pod import lost_pod_status, survivor_status
from finetune_operator.specs.service import headless_service
from finetune_operator.store import Store
from finetune_operator.times import show, utcnow

logger = logging.getLogger(__name__)


class LookAgainError(Exception):
    """Memory and the API server disagree: observe again, this time there."""


class RefusedError(Exception):
    """The API server does not take a child, for a reason that people should read."""

    def __init__(self, readiness: Readiness) -> None:
        super().__init__(readiness.message)
        self.readiness = readiness


class Applier:
    """Writes to the API server, and tells the store what came of it."""

    def __init__(self, kube: Kube, store: Store, scope: Scope | None = None) -> None:
        """`scope`: whose label the children carry; default: an operator without a class."""
        self._kube = kube
        self._store = store
        self._scope = scope or Scope()

    async def apply(self, key: Key, version: int, actions: Sequence[Action]) -> None:
        """Carries out `actions` in order. `version`: resourceVersion of the FineTuneJob they were planned for.

        Raises:
            LookAgainError: what was observed is outdated.
            RefusedError: a child was not taken.
            ApiError and what aiohttp raises: try again later.
        """
        for action in actions:
            logger.info("%s: %s", key, type(action).__name__)
            await self._one(key, version, action)

    async def _one(self, key: Key, version: int, action: Action) -> None:
        match action:
            case CreateSnapshot(identity, snapshot, replace):
                body = snapshot_config_map(identity, snapshot)
                if replace:
                    await self._delete_snapshot(identity)
                try:
                    await self._create(CONFIGMAPS, identity, body)
                except ConflictError as error:
                    raise LookAgainError from error
            case CreateChild():
                await self._create_child(key, version, action)
            case SetBackoffLimit(uid, value):
                body = {"metadata": {"uid": uid}, "spec": {"backoffLimit": value}}
                answer = await self._kube.patch(JOBS, key.namespace, key.name, body)
                self._store.put_child(child_state(answer))
            case DeleteChild(uid):
                if not await self._kube.delete(JOBS, key.namespace, key.name, uid, "Foreground"):
                    self._store.drop_child(key, uid)  # no watch has said so yet
            case DeletePod():
                await self._delete_pod(key, action)
            case DeleteJob(uid):
                await self._kube.delete(FINETUNEJOBS, key.namespace, key.name, uid, "Background")

    async def _delete_pod(self, key: Key, action: DeletePod) -> None:
        """Deletion alone does not end a pod whose node is gone: the Job controller waits for a terminal phase, and
        keeps its finalizer until it sees one (tried on 1.34)."""
        at = show(utcnow())
        status = lost_pod_status(action.node, at) if action.force else survivor_status(at)
        try:
            body = {"metadata": {"uid": action.uid}, "status": status}
            await self._kube.patch_status(PODS, key.namespace, action.name, body)
        except (NotFoundError, ConflictError):
            return
        grace = 0 if action.force else None
        await self._kube.delete(PODS, key.namespace, action.name, action.uid, "Background", grace)

    async def _delete_snapshot(self, identity: RunIdentity) -> None:
        name = snapshot_name(identity)
        found = await self._kube.get(CONFIGMAPS, identity.namespace, name)
        if found is not None:
            await self._kube.delete(CONFIGMAPS, identity.namespace, name, found["metadata"]["uid"], "Background")

    async def _create_child(self, key: Key, version: int, action: CreateChild) -> None:
        """Service and Job, unless the FineTuneJob has changed: a job that has ended or is being deleted must never
        get another child, however old the news is that the plan was made from."""
        identity = action.snapshot.run.identity
        live = await self._kube.get(FINETUNEJOBS, key.namespace, key.name)
        if live is None:
            raise LookAgainError
        state = job_state(live)
        self._store.replace_job(state)
        if state.uid != identity.uid or state.version != version:
            raise LookAgainError
        await self._ensure(SERVICES, identity, headless_service(action.snapshot.run))
        body = training_job(
            action.snapshot, action.service_account, action.backoff_limit, action.retries_before, action.queue
        )
        self._store.put_child(child_state(await self._ensure(JOBS, identity, body)))

    async def _ensure(self, resource: Resource, identity: RunIdentity, body: Object) -> Object:
        """Creates the child, or finds that it exists and is ours. Returns it as it is."""
        try:
            return await self._create(resource, identity, body)
        except ConflictError:
            name = body["metadata"]["name"]
            existing = await self._kube.get(resource, identity.namespace, name)
        if existing is None:
            raise LookAgainError
        if controller_uid(existing) == identity.uid and not existing["metadata"].get("deletionTimestamp"):
            return existing
        raise RefusedError(_conflict(resource, existing, identity))

    async def _create(self, resource: Resource, identity: RunIdentity, body: Object) -> Object:
        try:
            return await self._kube.create(resource, identity.namespace, self._scope.mark(body))
        except (ForbiddenError, InvalidError) as error:
            raise RefusedError(_refusal(resource, error)) from error


def _refusal(resource: Resource, error: ApiError) -> Readiness:
    if QUOTA.search(error.message):
        return refused(error.message)
    return no(
        "PodRejected",
        f"the API server does not take the {resource.kind}: {error.message}. Mend the FineTuneProfile "
        "or the namespace's rules, and create the job anew",
    )


def _conflict(resource: Resource, existing: Object, identity: RunIdentity) -> Readiness:
    owners = existing["metadata"].get("ownerReferences") or []
    former = any(owner.get("kind") == "FineTuneJob" and owner.get("name") == identity.name for owner in owners)
    if former or existing["metadata"].get("deletionTimestamp"):
        return no("WaitingForCleanup", f"the former {resource.kind} {identity.name} is still being deleted")
    return no(
        "NameConflict",
        f"{resource.kind} {identity.name} exists in namespace {identity.namespace} and does not belong to this "
        "FineTuneJob: delete it, or give the FineTuneJob another name",
    )
