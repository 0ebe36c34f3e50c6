"""Leadership: a Lease that one operator holds at a time. Renewed in a thread of its own, so that a busy event loop
does not lose it; given back on a clean exit, so that the next one need not wait.

Times are measured with the local clock from when a change was *seen*, so clocks of different nodes need not agree.
Whoever holds the Lease may write until `RENEW_DEADLINE_SECONDS` after it last asked successfully, and not a moment
longer, whatever its requests, its threads or its whole process are stuck in.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

logger = logging.getLogger(__name__)

DURATION_SECONDS = 12
RENEW_DEADLINE_SECONDS = 8.0
RETRY_SECONDS = 2.0
REQUEST_TIMEOUT = (2, 3)
STOP_SECONDS = 10.0


class LeaseApi(Protocol):
    """The three requests on the Lease object."""

    def read(self) -> client.V1Lease | None: ...

    def create(self, lease: client.V1Lease) -> None: ...

    def replace(self, lease: client.V1Lease) -> None: ...


class KubernetesLease:
    """The Lease on the API server, over the official synchronous client."""

    def __init__(self, namespace: str, name: str) -> None:
        settings = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]  # untyped there
        except ConfigException:
            config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]  # untyped there
        settings.retries = False
        self._api = client.CoordinationV1Api(client.ApiClient(settings))
        self._namespace = namespace
        self._name = name

    def read(self) -> client.V1Lease | None:
        """The Lease, or None."""
        try:
            return self._api.read_namespaced_lease(self._name, self._namespace, _request_timeout=REQUEST_TIMEOUT)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def create(self, lease: client.V1Lease) -> None:
        lease.metadata = client.V1ObjectMeta(name=self._name, namespace=self._namespace)
        self._api.create_namespaced_lease(self._namespace, lease, _request_timeout=REQUEST_TIMEOUT)

    def replace(self, lease: client.V1Lease) -> None:
        self._api.replace_namespaced_lease(self._name, self._namespace, lease, _request_timeout=REQUEST_TIMEOUT)


@dataclass
class _Sight:
    """The Lease as last seen, and when (monotonic seconds) it last changed."""

    mark: str = ""
    at: float = 0.0
    runs_out: float = 0.0


class LeaderElection:
    """Runs in a thread from `start` to `stop`. Who has lost the Lease tries to win it again."""

    def __init__(
        self, api: LeaseApi, identity: str, on_won: Callable[[], None], well: Callable[[], bool] = lambda: True
    ) -> None:
        """`on_won` is called from the thread at the beginning of each term. While `well` says no, the Lease is neither
        taken nor renewed: another may do better."""
        self._api = api
        self._identity = identity
        self._on_won = on_won
        self._well = well
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._sight = _Sight()
        self._until = 0.0
        self.term = 0
        """How often this operator has won. A term that is over never comes back."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Gives the Lease back and ends the thread. Nothing may be written after this was called."""
        self._stop.set()
        self._thread.join(timeout=STOP_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def left(self) -> float:
        """Seconds for which the Lease is surely held without another renewal; 0 for who does not lead."""
        return max(0.0, self._until - time.monotonic())

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            if self._well() and self._try():
                led = self.left() > 0
                self._until = began + RENEW_DEADLINE_SECONDS
                if not led:
                    self.term += 1
                    logger.info("%s leads", self._identity)
                    self._on_won()
            self._stop.wait(self._pause())
        self._until = 0.0
        self._release()

    def _pause(self) -> float:
        """Seconds until the next attempt: who waits for another's Lease to run out is there when it does."""
        runs_out = self._sight.runs_out - time.monotonic()
        return min(RETRY_SECONDS, runs_out) if runs_out > 0 else RETRY_SECONDS

    def _try(self) -> bool:
        """Takes or renews the Lease. False when another holds it or the API server does not answer."""
        try:
            return self.take(time.monotonic())
        except Exception as error:  # whatever it is: the thread must live, and the term ends by itself
            logger.warning("the Lease could not be renewed: %s", error)
            return False

    def take(self, now: float) -> bool:
        """One attempt at `now` (monotonic seconds). Raises what the client raises; a conflict is another's win."""
        lease = self._api.read()
        moment = datetime.now(UTC)
        if lease is None:
            self._api.create(client.V1Lease(spec=self._spec(moment)))
            return True
        spec = lease.spec = lease.spec or client.V1LeaseSpec()
        mine = spec.holder_identity == self._identity
        valid_for = spec.lease_duration_seconds or DURATION_SECONDS
        mark = f"{spec.holder_identity} {spec.renew_time}"
        if mark != self._sight.mark:
            self._sight = _Sight(mark, now, 0.0 if mine else now + valid_for)
        if spec.holder_identity and not mine and now - self._sight.at < valid_for:
            return False
        if not mine:
            spec.acquire_time = moment
            spec.lease_transitions = (spec.lease_transitions or 0) + 1
        spec.holder_identity = self._identity
        spec.lease_duration_seconds = DURATION_SECONDS
        spec.renew_time = moment
        self._api.replace(lease)  # carries the resourceVersion: of two that try, one fails
        return True

    def _spec(self, moment: datetime) -> client.V1LeaseSpec:
        return client.V1LeaseSpec(
            holder_identity=self._identity,
            lease_duration_seconds=DURATION_SECONDS,
            acquire_time=moment,
            renew_time=moment,
            lease_transitions=0,
        )

    def _release(self) -> None:
        try:
            lease = self._api.read()
            if lease is not None and lease.spec is not None and lease.spec.holder_identity == self._identity:
                lease.spec.holder_identity = ""
                lease.spec.lease_duration_seconds = 1
                self._api.replace(lease)
        except Exception as error:
            logger.warning("the Lease could not be given back, it runs out by itself: %s", error)
