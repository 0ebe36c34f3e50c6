"""plan.json beside a run's checkpoints: the plan in force, for the attempt that goes on from them. Not in them, for it
is needed before the first one too: when a group gives a plan up, all of its processes begin again."""

from __future__ import annotations

import json
from dataclasses import asdict

from finetune_api.engine import EngineSpec

from finetune_trainer.planning.plans import Failure, Plan
from finetune_trainer.publish.store import Store

NAME = "plan.json"
FORMAT = 1


class PlanFile:
    """Of one run, over all its attempts."""

    def __init__(self, store: Store, prefix: str, run_digest: str) -> None:
        """
        Args:
            store: where it outlives this process.
            prefix: beginning of the keys of the run's checkpoints, with a slash at its end.
            run_digest: SHA-256 of the TrainingRun; the plan of another one is passed over.
        """
        self._store, self._key, self._run = store, prefix + NAME, run_digest

    def write(self, plan: Plan) -> None:
        """Raises RunError when the store fails."""
        self._store.put_bytes(self._key, to_json(plan, self._run))

    def read(self) -> Plan | None:
        """The plan of the attempt before, without a prediction: that is of a machine. None where there is none of this
        run. Raises RunError when the store fails."""
        data = self._store.get_bytes(self._key)
        return None if data is None else from_json(data, self._run)


def to_json(plan: Plan, run_digest: str) -> bytes:
    """`plan` as it is kept."""
    kept = {
        "format": FORMAT,
        "run": run_digest,
        "engine": plan.engine.wire(),
        "checkpointing": plan.checkpointing,
        "cuts": plan.cuts,
        "why": plan.why,
        "after": [asdict(failure) for failure in plan.after],
    }
    return json.dumps(kept, indent=1).encode()


def from_json(data: bytes, run_digest: str) -> Plan | None:
    """What `to_json` gave; None where it is damaged, or of another run or format."""
    try:
        kept = json.loads(data)
        if (kept["format"], kept["run"]) != (FORMAT, run_digest):
            return None
        after = tuple(Failure(**failure) for failure in kept["after"])
        engine = EngineSpec.model_validate(kept["engine"])
        return Plan(engine, bool(kept["checkpointing"]), int(kept["cuts"]), str(kept["why"]), after=after)
    except (ValueError, KeyError, TypeError):
        return None
