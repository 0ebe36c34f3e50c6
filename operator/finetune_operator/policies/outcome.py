"""How a job ended, once its Job has ended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.exits import ExitCode
from finetune_api.progress import Result
from finetune_api.status import AttemptStatus

from finetune_operator.policies.exit_codes import reason_of
from finetune_operator.projections import ChildState

EXIT_CODE = re.compile(r"failed with exit code (\d+)")


@dataclass(frozen=True)
class Succeeded:
    """The manifest is published."""

    reason: str
    message: str
    result: Result | None


@dataclass(frozen=True)
class Failed:
    """Nothing more will be tried."""

    reason: str
    message: str


def outcome(
    child: ChildState, attempts: Sequence[AttemptStatus], result: Result | None, retries: int, used: int
) -> Succeeded | Failed | None:
    """None while the Job has not ended. `result` is the message of the pod that ended with 0, if it left one."""
    if child.complete:
        if result is None:
            return Succeeded(
                "ResultUnreported",
                "the trainer ended well but its message was lost with the pod; "
                "manifest.json in status.artifacts.uri names the results",
                None,
            )
        return Succeeded("Published", f"the weights are published, {result.step} steps were trained", result)
    if child.failure is None:
        return None
    final = _users_mistake(child, attempts)
    if final is not None:
        return final
    if child.failure == "BackoffLimitExceeded":
        return Failed("RetriesExhausted", _exhausted(attempts, retries, used))
    return Failed("JobFailed", f"{child.failure}: {child.failure_message}")


def _users_mistake(child: ChildState, attempts: Sequence[AttemptStatus]) -> Failed | None:
    for attempt in reversed(attempts):
        if attempt.exit_code in (ExitCode.BAD_DATA, ExitCode.BAD_CONFIGURATION):
            reason = reason_of(attempt.exit_code)
            return Failed(reason, attempt.message or _silent(attempt.exit_code, attempt.pod_name))
    if child.failure == "PodFailurePolicy":
        code = EXIT_CODE.search(child.failure_message)
        if code and int(code[1]) in (ExitCode.BAD_DATA, ExitCode.BAD_CONFIGURATION):
            return Failed(reason_of(int(code[1])), _silent(int(code[1]), "that was deleted"))
    return None


def _silent(code: int, pod: str) -> str:
    what = "spec.dataset or spec.baseModel" if code == ExitCode.BAD_DATA else "the spec or a Secret that it names"
    return f"the trainer ended with exit code {code} in pod {pod} and left no message: check {what}, and the pod's log"


def _exhausted(attempts: Sequence[AttemptStatus], retries: int, used: int) -> str:
    text = f"{used} attempts failed, spec.runPolicy.retries is {retries}"
    if not attempts:
        return text
    last = attempts[-1]
    code = f" with exit code {last.exit_code}" if last.exit_code is not None else ""
    said = f": {last.message}" if last.message else f" (kubectl logs {last.pod_name})"
    return f"{text}; the last ended{code}, {last.reason}{said}{_hint(last)}"


def _hint(attempt: AttemptStatus) -> str:
    if attempt.reason == "OOMKilled":
        return "; it needs more memory than spec.resources of its FineTuneProfile gives"
    return ""
