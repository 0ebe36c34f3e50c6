"""What the trainer's exit code means for the Job and for people. The table itself is finetune_api.exits."""

from __future__ import annotations

from typing import Any

from finetune_api.exits import ExitCode

REASONS: dict[int, str] = {
    ExitCode.DONE: "Succeeded",
    ExitCode.INTERRUPTED: "Interrupted",
    ExitCode.PEER_LOST: "PeerLost",
    ExitCode.BAD_DATA: "BadData",
    ExitCode.BAD_CONFIGURATION: "BadConfiguration",
}


def reason_of(exit_code: int) -> str:
    """One word for how a container ended."""
    return REASONS.get(exit_code, "Error")


def pod_failure_policy(container: str) -> dict[str, Any]:
    """The Job's rules, first match wins: disruptions and interruptions are free, the user's mistakes are final, and
    whatever matches none counts against backoffLimit."""
    interrupted = sorted(code for code in ExitCode if code and not code.counts and not code.is_users)
    users = sorted(code for code in ExitCode if code.is_users)
    return {
        "rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            _on_exit("Ignore", container, interrupted),
            _on_exit("FailJob", container, users),
        ]
    }


def _on_exit(action: str, container: str, codes: list[ExitCode]) -> dict[str, Any]:
    values = [int(code) for code in codes]
    return {"action": action, "onExitCodes": {"containerName": container, "operator": "In", "values": values}}
