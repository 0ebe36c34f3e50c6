"""One schedule: a storm, a calm in which everything must come to its end, and a rest in which nothing may happen.

All that is drawn comes from one generator, and time from the virtual loop: the same seed gives the same schedule.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from finetune_api.progress import Progress
from finetune_operator.projections import pod_state
from finetune_operator.resources import CONFIGMAPS, FINETUNEJOBS, JOBS, PODS, SERVICES, Resource
from finetune_operator.specs.naming import JOB_UID_LABEL
from support.memory_api import Body, MemoryApi, Write, owner_uid, uid_of
from support.observations import NOW
from support.virtual_time import StandstillError, VirtualLoop

from chaos import garbage, history, kueue
from chaos.client import Client
from chaos.job_controller import JobController, condition, is_terminal
from chaos.judge import OPERATOR, Judge
from chaos.nodes import NODES, STEPS, Nodes
from chaos.process import Process
from chaos.trace import Trace
from chaos.users import NAMESPACE, UNACCEPTABLE, Users
from chaos.watchman import Watchman
from chaos.weather import CALM, Weather, forecast

STORM_STEPS = 120
CALM_STEPS = 900
"""At 5 s: audits come every 300 s, and what a worker postpones after errors is done within 180 s."""
REST_SECONDS = 1800.0
LATE = 1.0
MOST_CALLS = 10_000
"""In a whole schedule; 400 are usual."""
REST_CALLS = 10
"""In REST_SECONDS, besides the audits' lists: a last look at what an audit found, and for each job that waits for its
user."""
QUOTA = "exceeded quota: few, requested: pods=1, used: pods=4, limited: pods=4"


class BrokenRuleError(Exception):
    """What must hold did not."""


@dataclass
class Outcome:
    """What a schedule that kept all rules has shown."""

    phases: Counter[tuple[str, str]]
    reasons: set[tuple[str, str, str]]
    repetitions: int
    """News that were told once more, as the judge allows where watches are late."""
    calls: int
    seconds: float
    """Virtual time that went by."""
    trace: str
    """The last events."""

    def digest(self) -> str:
        """Differs if anything went differently."""
        told = f"{sorted(self.phases.items())} {sorted(self.reasons)} {self.calls} {self.seconds} {self.trace}"
        return hashlib.sha256(told.encode()).hexdigest()


class World:
    """Everything there is, with the operators in it."""

    def __init__(self, seed: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.rng = random.Random(seed)
        self.weather = self.forecast = forecast(self.rng)
        self.broken: str | None = None
        self.trace = Trace(self.loop.time)
        self.api = MemoryApi(self.now)
        self.judge = Judge(self.loop.time, self.fail)
        self.judge.watches_are_late = self.weather.lag > LATE or self.weather.breaks > 0
        self.judge.find = lambda resource, name: self.api.get(resource, NAMESPACE, name)
        self.refuses = ""
        """The words with which a quota refuses pods and Jobs now."""
        self.controller = JobController(self.api, lambda: self.refuses)
        self.nodes = Nodes(self.api, self.rng)
        self.users = Users(self.api, self.rng)
        self.processes: list[Process] = []
        self.calls = 0
        self.api.on_write += [self.trace.write, self.judge.saw, self._spread]
        self._born = 0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.loop.time())

    def fail(self, words: str) -> None:
        self.trace.add("JUDGE", words, "", "")
        self.broken = self.broken or words

    def check(self) -> None:
        """Raises BrokenRuleError if a rule was broken since the schedule began."""
        for process in self.processes:
            error = process.died_by_itself()
            if error is not None:
                self.fail(f"{process.client.who} ended by itself: {error!r}")
        if self.calls + sum(process.client.calls for process in self.processes) > MOST_CALLS:
            self.fail(f"more than {MOST_CALLS} requests: somebody is busy without end")
        if self.broken:
            raise BrokenRuleError(self.broken)

    # operators

    def bear(self) -> Process:
        """A new process."""
        self._born += 1
        who = f"{OPERATOR}-{self._born}"
        client = Client(who, self.api, self.rng, self.trace, self._weather_now, self._refused)
        process = Process(client, self.rng, self._weather_now, self.now)
        client.kill = partial(self.kill, process)
        client.on_call.append(self.judge.called)
        self.processes.append(process)
        return process

    def _weather_now(self) -> Weather:
        return self.weather

    def kill(self, process: Process) -> None:
        self.trace.add(process.client.who, "KILLED", "", "")
        process.kill()
        if process in self.processes:
            self.processes.remove(process)
        self.calls += process.client.calls

    def crew(self) -> None:
        """As many processes as there should be, and one that leads."""
        while len(self.processes) < self.weather.operators:
            self.bear()
        if not any(process.leads for process in self.processes):
            self.rng.choice(self.processes).lead()

    def hand_over(self) -> None:
        """Another process gets the Lease. The former may have been frozen, and notices late; what it sends then is held
        back by the client, but what is under way arrives."""
        former = [process for process in self.processes if process.leads]
        heirs = [process for process in self.processes if not process.leads] or [self.bear()]
        heir = self.rng.choice(heirs)
        self.trace.add(heir.client.who, "LEADS", "", "")
        heir.lead()
        for process in former:
            process.fence()
            late = self.rng.choice((0.0, 0.0, 0.1, 5.0, 60.0))
            self.loop.call_later(late, process.step_down, process.term)

    def _spread(self, write: Write) -> None:
        for process in self.processes:
            process.watches.take(write)

    def _refused(self, resource: Resource) -> str:
        return self.refuses if resource is JOBS else ""

    # the cluster

    def turn(self, pace: float) -> None:
        """A little of everything; `pace` between 0 and 1: how likely each thing gets a step."""
        rng = self.rng
        for job in self.api.find(JOBS):
            if owner_uid(job) and rng.random() < pace:
                self.controller.step(job)
        for pod in self.api.find(PODS):
            if rng.random() < pace:
                self.nodes.step(pod)
        if rng.random() < pace:
            self.controller.release_orphans()
            garbage.collect(self.api)
        for job in self.api.find(JOBS):
            if kueue.is_queued(job) and rng.random() < pace * 0.5:
                kueue.admit(self.api, job)
        self._trainers_answer()

    def _trainers_answer(self) -> None:
        """One of the trainers tells the working operator how far it is."""
        leaders = [process for process in self.processes if process.leads]
        running = [pod for pod in self.api.find(PODS) if pod["status"].get("phase") == "Running"]
        if not leaders or not running or self.rng.random() < 0.6:
            return
        state = pod_state(self.rng.choice(running))
        if state.index == 0:
            step = self.nodes.steps[state.owner_uid]
            self.nodes.steps[state.owner_uid] = min(STEPS, step + self.rng.randint(0, 30))
            told = Progress(
                run_uid=state.owner_uid,
                pod_uid=state.uid,
                stage="Training",
                step=step,
                total_steps=STEPS,
                resumed_from_step=step or None,
            )
            for leader in leaders:
                leader.hear_progress(state.job, told)

    def misfortune(self) -> None:
        """What the weather brings."""
        rng, weather = self.rng, self.weather
        if rng.random() < weather.users:
            self.users.act()
        if rng.random() < weather.saboteurs:
            self.users.sabotage()
        if rng.random() < weather.nodes:
            self._trouble_nodes()
        if rng.random() < weather.shortages:
            self._trouble_supplies()
        queued = [job for job in self.api.find(JOBS) if kueue.is_queued(job)]
        if queued and rng.random() < weather.nodes:
            kueue.evict(self.api, rng.choice(queued))
        if rng.random() < weather.handovers:
            self.hand_over()
        if self.processes:
            self._trouble_operator(rng.choice(self.processes))
        self.crew()

    def _trouble_nodes(self) -> None:
        rng = self.rng
        pods = [p for p in self.api.find(PODS) if not is_terminal(p) and p["spec"].get("nodeName")]
        if pods and rng.random() < 0.6:
            reasons = ("EvictionByEvictionAPI", "PreemptionByScheduler", "TerminationByKubelet")
            self.nodes.evict(rng.choice(pods), rng.choice(reasons))
        elif self.nodes.lost and rng.random() < 0.5:
            self.nodes.lost.clear()
        elif len(self.nodes.lost) < len(NODES) - 1:
            self.nodes.lost.add(rng.choice(NODES))
        self.trace.add("weather", "lost nodes", " ".join(sorted(self.nodes.lost)), "")

    def _trouble_supplies(self) -> None:
        rng = self.rng
        self.refuses = rng.choice(("", QUOTA))
        self.nodes.no_room = rng.random() < 0.4
        self.nodes.trouble = rng.choice((0.0, 0.0, 0.8))
        self.trace.add("weather", "quota" if self.refuses else "room", str(self.nodes.no_room), "")

    def _trouble_operator(self, process: Process) -> None:
        rng, weather, who = self.rng, self.weather, process.client.who
        if rng.random() < weather.breaks:
            self.trace.add(who, "WATCH BROKEN", process.watches.break_one(rng), "")
        if rng.random() < weather.jumps:
            process.skew = timedelta(seconds=rng.choice((-300, -20, 0, 20, 300)))
            self.trace.add(who, "CLOCK", str(process.skew), "")
        if weather.outages and (process.client.cut_off or rng.random() < weather.outages):
            process.client.cut_off = not process.client.cut_off
            self.trace.add(who, "CUT OFF", str(process.client.cut_off), "")

    # the three parts

    async def storm(self) -> None:
        self.users.begin()
        self.nodes.silence = self.rng.choice((0.0, 0.5))
        self.nodes.ends = {0: 0.5, 1: 2, 65: 0.2, 75: 1, 76: 1, 78: 0.2, 137: 1.5}
        for _ in range(STORM_STEPS):
            await asyncio.sleep(self.rng.choice((0.05, 0.5, 2.0, 8.0)))
            self.turn(0.4)
            self.misfortune()
            self.check()

    async def calm(self) -> None:
        """The faults cease, and people want their jobs done. The operators are left as they are, but for one that may
        be new."""
        self.trace.add("weather", "CALM", "", "")
        self.weather = CALM
        self.refuses, self.nodes.no_room, self.nodes.trouble = "", False, 0.0
        self.nodes.ends = {0: 1.0}
        self.users.mend()
        self._settle_nodes()
        for process in list(self.processes):
            process.client.cut_off = False
            process.skew = timedelta(0)
        for process in self.processes[1:]:
            self.kill(process)
        self.crew()
        for _ in range(CALM_STEPS):
            await asyncio.sleep(5.0)
            self.turn(0.9)
            self.crew()
            self.check()
            if self._over():
                return
        left = {job["metadata"]["name"]: _summary(job) for job in self.users.jobs() if not self._at_its_end(job)}
        raise BrokenRuleError(f"not ended after the storm: {left}")

    async def rest(self) -> None:
        """Nothing is left to do: nobody is asked for anything but the audit's lists, and nothing is left over."""
        for _ in range(70):
            await asyncio.sleep(5.0)  # the last audits, the last deletions
            self.turn(0.9)
            self.check()
        (process,) = self.processes
        waiting = len([job for job in self.users.jobs() if not history.ended(job["status"])])
        calls: Counter[str] = Counter()
        process.client.on_call.append(lambda _, verb, resource, ns, name: calls.update([f"{verb} {resource.kind}"]))
        await asyncio.sleep(REST_SECONDS)
        self.check()
        del calls["list FineTuneJob"], calls["list FineTuneProfile"], calls["list Job"], calls["list Pod"]
        if sum(calls.values()) > REST_CALLS * (1 + waiting):
            raise BrokenRuleError(f"there is nothing to do, and yet: {dict(calls)}")
        self._left_over(process)

    def _left_over(self, process: Process) -> None:
        jobs = {uid_of(job): job for job in self.users.jobs()}
        for kind in (JOBS, CONFIGMAPS, SERVICES, PODS):
            owners = jobs if kind is not PODS else {uid_of(job): job for job in self.api.find(JOBS)}
            for body in self.api.find(kind):
                name = f"{kind.kind} {body['metadata']['name']}"
                stuck = kind is PODS and body["spec"].get("nodeName") in self.nodes.lost
                stuck = stuck or (bool(self.nodes.lost) and "deletionTimestamp" in body["metadata"])
                if owner_uid(body) and owner_uid(body) not in owners and not stuck:
                    raise BrokenRuleError(f"{name} is left over")
                doomed = "deletionTimestamp" in owners.get(owner_uid(body), body)["metadata"]
                if kind is JOBS and not doomed and not (condition(body, "Complete") or condition(body, "Failed")):
                    raise BrokenRuleError(f"{name} still runs, though its FineTuneJob has ended")
        remembered = {(key.namespace, key.name) for key in process.store.jobs}
        if remembered != self.api.objects[FINETUNEJOBS].keys():
            raise BrokenRuleError(f"the operator remembers {remembered}")
        children = {(key.namespace, key.name) for key in process.store.children}
        if children != self.api.objects[JOBS].keys():
            raise BrokenRuleError(f"the operator remembers the Jobs {children}")

    def _settle_nodes(self) -> None:
        """A node with a pod of ours may stay lost, where the operator is to see to it; all others come back."""
        busy = [pod["spec"]["nodeName"] for pod in self.api.find(PODS) if pod["spec"].get("nodeName")]
        if self.forecast.nodes and busy and len(self.nodes.lost) < len(NODES) - 1:
            self.nodes.lost.add(self.rng.choice(busy))
        waiting = any(self._waits_for_node(job) for job in self.api.find(JOBS))
        if waiting or any(self._masterless(pod) for pod in self.api.find(PODS)):
            self.nodes.lost.clear()

    def _waits_for_node(self, job: Body) -> bool:
        return "Wait" in (job["metadata"].get("annotations") or {}).values()

    def _masterless(self, pod: Body) -> bool:
        """Its FineTuneJob is gone, or going: nobody looks after it but its node."""
        masters = {uid_of(job) for job in self.users.jobs() if "deletionTimestamp" not in job["metadata"]}
        return pod["metadata"]["labels"][JOB_UID_LABEL] not in masters

    def _over(self) -> bool:
        return all(self._at_its_end(job) for job in self.users.jobs())

    def _at_its_end(self, job: Body) -> bool:
        if job["spec"]["dataset"]["uri"] == UNACCEPTABLE and not history.ended(job["status"]):
            return job["status"].get("phase") == "Pending"
        if job["metadata"].get("deletionTimestamp") and self.nodes.lost:
            return True  # whoever deleted it in the foreground waits for a pod that nothing ends
        over = history.ended(job["status"]) != ""
        return over and job["spec"]["runPolicy"].get("ttlSecondsAfterFinished", 9999) > 1000


def _summary(job: Body) -> str:
    conditions = {c["type"]: f"{c['status']}/{c['reason']}" for c in job["status"].get("conditions") or []}
    return f"{job['status'].get('phase')} {conditions} suspend={job['spec'].get('suspend')}"


def play(seed: int) -> Outcome:
    """Plays the schedule of this seed. Raises BrokenRuleError with the last events."""
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(_play(seed))
    except StandstillError as error:
        raise BrokenRuleError(f"time stands still: {error}") from error


async def _play(seed: int) -> Outcome:
    world = World(seed)
    with Watchman(world.fail):
        try:
            await world.storm()
            await world.calm()
            await world.rest()
        except BrokenRuleError as error:
            raise BrokenRuleError(f"{error}\n{world.forecast}\n{world.trace.text()}") from None
        finally:
            for process in list(world.processes):
                world.kill(process)
    judge = world.judge
    return Outcome(judge.phases, judge.reasons, judge.repetitions, world.calls, world.loop.time(), world.trace.text())
