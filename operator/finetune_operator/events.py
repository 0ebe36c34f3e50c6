"""Events for people, by our own writer. Each piece of news has a name made of what it is about, so that telling it
twice, even by another operator, still gives one Event."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime

import aiohttp
from finetune_api.base import API_VERSION

from finetune_operator.client import ApiError, ConflictError, Kube, Object
from finetune_operator.projections import JobState
from finetune_operator.reconcile.actions import Announcement
from finetune_operator.resources import EVENTS
from finetune_operator.times import show_micro

logger = logging.getLogger(__name__)

CONTROLLER = "finetune.dev/finetune-operator"
LONGEST_NOTE = 1000
REMEMBERED = 20_000


class EventWriter:
    """Posts Events about FineTuneJobs."""

    def __init__(self, kube: Kube, instance: str) -> None:
        """`instance` is the operator's pod."""
        self._kube = kube
        self._instance = instance
        self._posted: OrderedDict[str, None] = OrderedDict()

    async def post(self, job: JobState, announcements: Iterable[Announcement], now: datetime) -> None:
        """Posts what was not posted before. An Event that cannot be posted is logged and does not stop the work."""
        for announcement in announcements:
            body = event_of(job, announcement, self._instance, now)
            name = str(body["metadata"]["name"])
            if name in self._posted:
                continue
            logger.info("%s: %s: %s", job.key, announcement.reason, announcement.message)
            try:
                await self._kube.create(EVENTS, job.key.namespace, body)
            except ConflictError:
                logger.debug("%s: the Event %s was posted before", job.key, name)
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                logger.warning("%s: the Event %s could not be posted: %s", job.key, announcement.reason, error)
                continue
            self._remember(name)

    def _remember(self, name: str) -> None:
        self._posted[name] = None
        while len(self._posted) > REMEMBERED:
            self._posted.popitem(last=False)


def event_of(job: JobState, announcement: Announcement, instance: str, now: datetime) -> Object:
    """The Event (events.k8s.io/v1) for one piece of news."""
    said = f"{job.uid} {announcement.reason} {announcement.mark}"
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{job.key.name}.{digest}", "namespace": job.key.namespace},
        "eventTime": show_micro(now),
        "reportingController": CONTROLLER,
        "reportingInstance": instance[:128],
        "action": "Reconcile",
        "reason": announcement.reason,
        "note": announcement.message[:LONGEST_NOTE],
        "type": announcement.kind,
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": "FineTuneJob",
            "namespace": job.key.namespace,
            "name": job.key.name,
            "uid": job.uid,
            "resourceVersion": str(job.version),
        },
    }
