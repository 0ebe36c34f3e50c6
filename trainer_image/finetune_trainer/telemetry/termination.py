"""The termination message: the last word of a pod, read by the operator from its status."""

from __future__ import annotations

import logging
from pathlib import Path

from finetune_api import ExitCode, Result

from finetune_trainer.errors import RunError

log = logging.getLogger("finetune")

LIMIT = 3 * 1024
OUTCOMES: dict[int, str] = {
    ExitCode.BAD_DATA: "BadData",
    ExitCode.BAD_CONFIGURATION: "BadConfiguration",
    ExitCode.INTERRUPTED: "Interrupted",
    ExitCode.PEER_LOST: "PeerLost",
}


def failure(run_uid: str, error: BaseException, step: int, loss: float | None, resumed_from_step: int | None) -> Result:
    """The Result of a run that ended with `error`. Only a RunError's message was written for people, and is kept."""
    code = error.exit_code if isinstance(error, RunError) else ExitCode.ERROR
    text = str(error) if isinstance(error, RunError) else f"{type(error).__name__}, see the log of the pod"
    figures = {"step": step, "loss": loss, "resumed_from_step": resumed_from_step}
    return ended_with(run_uid, code, text).model_copy(update=figures)


def outcome_of(code: int) -> str:
    """The Result's word for an exit code other than 0."""
    return OUTCOMES.get(code, "Error")


def ended_with(run_uid: str, code: int, text: str) -> Result:
    """The Result of a run that ended with the exit code `code`."""
    return Result.model_validate(
        {
            "run_uid": run_uid,
            "outcome": outcome_of(code),
            "message": text if len(text) <= 1024 else text[:1023] + "…",
        }
    )


def encode(result: Result) -> bytes:
    """JSON of at most 3 KiB. What does not fit is left out: first what the manifest says as well, the figures and the
    paths of the weights, then the message's end (its characters may take four bytes each)."""
    shorter: list[dict[str, object]] = [{}, {"judgement": None}, {"weights": ()}]
    while shorter or result.message:
        if shorter:
            result = result.model_copy(update=shorter.pop(0))
        else:
            result = result.model_copy(update={"message": result.message[: len(result.message) // 2]})
        data = result.model_dump_json(by_alias=True, exclude_none=True).encode()
        if len(data) <= LIMIT:
            return data
    raise ValueError("what is left of a result has bounds that fit into a termination message")


def leave(path: Path | None, result: Result) -> None:
    """Writes the message where the kubelet looks for it; nowhere when `path` is None."""
    if path is None:
        return
    try:
        path.write_bytes(encode(result))
    except OSError as error:
        # the exit code says the most important part; it must not be lost for the message
        log.warning("the termination message could not be written to %s: %s", path, error)
