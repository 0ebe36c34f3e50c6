"""Scheduler and kubelets: a pod is bound, waits for its image, runs and ends, in steps that the schedule chooses.

A node may stop answering: its pods then stay as they are, and once the taint manager has told them to go they are
Terminating for ever (https://kubernetes.io/docs/concepts/architecture/nodes/#node-controller).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

from finetune_operator.projections import CONTAINER
from finetune_operator.resources import PODS
from finetune_operator.specs.naming import JOB_UID_LABEL
from finetune_operator.times import show
from support.memory_api import Body, MemoryApi, seconds_since, uid_of

from chaos.job_controller import index_of, is_terminal, with_condition

WHO = "kubelet"
NODES = ("node-1", "node-2", "node-3")
WAITING = (
    ("ContainerCreating", ""),
    ("ErrImagePull", "pull access denied"),
    ("ImagePullBackOff", "Back-off pulling image"),
    ("CreateContainerConfigError", 'secret "models" not found'),
)
STEPS = 1000


class Nodes:
    """`ends` gives the weights of the exit codes with which containers end; the schedule changes it."""

    def __init__(self, api: MemoryApi, rng: random.Random) -> None:
        self._api = api
        self._rng = rng
        self.lost: set[str] = set()
        self.no_room = False
        """Whether new pods find no node."""
        self.trouble = 0.0
        """How often a container cannot be made at once."""
        self.silence = 0.0
        """How often a container ends without a message."""
        self.ends: dict[int, float] = {0: 1.0}
        self.endless: set[str] = set()
        """UIDs of FineTuneJobs whose trainers go on and on."""
        self.steps: Counter[str] = Counter()
        """By UID of a FineTuneJob: steps that its last checkpoint holds."""

    def step(self, pod: Body) -> None:
        """What becomes of one pod next."""
        if is_terminal(pod):
            self._clear(pod)
        elif not pod["spec"].get("nodeName"):
            self._schedule(pod)
        elif pod["spec"]["nodeName"] in self.lost:
            self._lose(pod)
        elif pod["metadata"].get("deletionTimestamp"):
            self._terminate(pod)
        else:
            self._go_on(pod)

    def evict(self, pod: Body, reason: str) -> None:
        """Eviction, preemption or a taint: the pod is told to go, and says that it was disrupted."""
        at = show(self._api.now())
        told = {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": at}
        self._status(pod, with_condition(pod["status"], told))
        self._api.delete("eviction", PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])

    def _schedule(self, pod: Body) -> None:
        at = show(self._api.now())
        if self.no_room:
            words = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
            no = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
            self._status(pod, with_condition(pod["status"], no))
            return
        up = [node for node in NODES if node not in self.lost]
        yes = {"type": "PodScheduled", "status": "True", "lastTransitionTime": at}
        spec = {**pod["spec"], "nodeName": self._rng.choice(up)}
        self._api.update("scheduler", PODS, pod, spec=spec, status=with_condition(pod["status"], yes))

    def _lose(self, pod: Body) -> None:
        """A minute after its node went silent."""
        if not pod["metadata"].get("deletionTimestamp"):
            self.evict(pod, "DeletionByTaintManager")

    def _terminate(self, pod: Body) -> None:
        """SIGTERM has reached the container. What never started just ends."""
        if not self._runs(pod):
            self._status(pod, {**pod["status"], "phase": "Failed"})
        elif seconds_since(pod["metadata"]["deletionTimestamp"], self._api.now()) > 0:
            self._end(pod, 137)  # its grace is over
        else:
            self._end(pod, self._rng.choice([75, 75, 75, 0, 1]))

    def _go_on(self, pod: Body) -> None:
        if self._runs(pod):
            uid = pod["metadata"]["labels"][JOB_UID_LABEL]
            if uid not in self.endless:
                codes, weights = zip(*self.ends.items(), strict=True)
                self._end(pod, self._rng.choices(codes, weights)[0])
        elif self._rng.random() < self.trouble:
            reason, message = self._rng.choice(WAITING)
            self._container(pod, "Pending", {"waiting": {"reason": reason, "message": message}})
        else:
            self._container(pod, "Running", {"running": {"startedAt": show(self._api.now())}})

    def _runs(self, pod: Body) -> bool:
        return any("running" in c["state"] for c in pod["status"].get("containerStatuses") or [])

    def _end(self, pod: Body, code: int) -> None:
        ended: dict[str, Any] = {"exitCode": code, "finishedAt": show(self._api.now())}
        if code == 137 and self._rng.random() < 0.5:
            ended["reason"] = "OOMKilled"
        said = code in (0, 65, 75, 76, 78) and self._rng.random() >= self.silence
        if said and index_of(pod) == 0:
            ended["message"] = self._message(pod, code)
        self._container(pod, "Failed" if code else "Succeeded", {"terminated": ended})

    def _message(self, pod: Body, code: int) -> str:
        outcome = {0: "Succeeded", 65: "BadData", 75: "Interrupted", 76: "Interrupted", 78: "BadConfiguration"}[code]
        uid = pod["metadata"]["labels"][JOB_UID_LABEL]
        went_on = self.steps[uid]
        step = STEPS if code == 0 else min(STEPS, went_on + self._rng.randint(0, 200))
        self.steps[uid] = max(went_on, step - self._rng.randint(0, 50))
        result: Body = {"runUid": uid, "outcome": outcome, "step": step, "resumedFromStep": went_on}
        if code == 0:
            result |= {"uri": "s3://models/dog/", "weights": ["model.safetensors"]}
        if code in (65, 78):
            result["message"] = "spec.dataset.uri: no pictures there"
        return json.dumps(result)

    def _container(self, pod: Body, phase: str, state: Body) -> None:
        status = {**pod["status"], "phase": phase, "containerStatuses": [{"name": CONTAINER, "state": state}]}
        if phase == "Running":
            status["podIP"] = "10.0.0.9"
        self._status(pod, status)

    def _status(self, pod: Body, status: Body) -> None:
        self._api.update(WHO, PODS, pod, status=status)

    def _clear(self, pod: Body) -> None:
        """The kubelet's last word on a pod that was deleted and has ended: nothing holds it from this side."""
        meta = pod["metadata"]
        if meta.get("deletionTimestamp"):
            self._api.delete(WHO, PODS, meta["namespace"], meta["name"], uid=uid_of(pod), grace=0)
