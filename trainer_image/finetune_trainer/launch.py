"""What surrounds a run: settings, logs, telemetry and signals; and how its end becomes an exit code."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from finetune_api import ExitCode, TrainingRun
from rich.console import Console

from finetune_trainer.digests import sha256_of
from finetune_trainer.errors import ConfigurationError, Interrupted, RunError, room_on_disk
from finetune_trainer.group.place import Place, place_of
from finetune_trainer.group.seat import end_with_supervisor
from finetune_trainer.local_run import load_run
from finetune_trainer.settings import Settings
from finetune_trainer.signals import RESERVE_SECONDS, Stop, stop_signals
from finetune_trainer.telemetry.board import Board
from finetune_trainer.telemetry.listener import Listener, Listeners
from finetune_trainer.telemetry.logs import LogListener, configure_logging
from finetune_trainer.telemetry.termination import ended_with, failure, leave, outcome_of

log = logging.getLogger("finetune")


@contextmanager
def exiting_on_errors() -> Iterator[None]:
    """Prints a RunError's lines and exits with its code."""
    try:
        yield
    except RunError as error:
        show(error)
        sys.exit(error.exit_code)


def show(error: RunError) -> None:
    """An error for people, a line for each problem."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for line in str(error).splitlines():
        console.print("[bold red]error:[/]", end=" ")
        console.print(line, markup=False)


def launch(file: Path, profile_file: Path | None, overwrite: bool, settings: Settings) -> int:
    """Carries out the run in `file`, leaves its Result for the operator, and returns the exit code."""
    configure_logging(settings.log_format)
    board = Board("", settings.attempt)
    run: TrainingRun | None = None
    try:
        run = load_run(file, profile_file)
        verify_digest(file, settings.run_sha256)
        configure_logging(settings.log_format, {"job": f"{run.identity.namespace}/{run.identity.name}"})
        board = Board(run.identity.uid, settings.attempt)
        # in a pod the file itself counts: another version of the trainer may write the same settings otherwise
        digest = settings.run_sha256 or hashlib.sha256(run.to_json().encode()).hexdigest()
        place = place_of(run, digest, settings)
        if place is not None and settings.seat is None:
            return _supervise(run, place, _arguments(file, profile_file, overwrite), settings)
        if settings.seat is not None:
            end_with_supervisor()
        with room_on_disk(settings.work(run.identity.uid), settings.cache()):
            return _carry_out(run, digest, file, board, overwrite, settings)
    except RunError as error:
        _leave_failure(run, board, error, settings)
        if settings.log_format == "json":
            log.error("%s", error, extra={"exit_code": int(error.exit_code)})
        else:
            show(error)
        return error.exit_code
    except Exception as error:
        _leave_failure(run, board, error, settings)
        log.exception("unexpected error")
        return ExitCode.ERROR


def verify_digest(file: Path, expected: str | None) -> None:
    """Raises ConfigurationError when a pod's TrainingRun is not the one that the operator wrote."""
    actual = sha256_of(file)
    if expected is not None and expected != actual:
        raise ConfigurationError(
            f"FINETUNE_RUN_SHA256 is {expected}, but {file} has {actual}: it is not what the operator wrote; delete "
            "the job and create it anew"
        )


def _arguments(file: Path, profile_file: Path | None, overwrite: bool) -> list[str]:
    profile = [] if profile_file is None else ["--profile", str(profile_file)]
    return ["run", str(file), *profile, *(["--overwrite"] if overwrite else [])]


def _supervise(run: TrainingRun, place: Place, arguments: list[str], settings: Settings) -> int:
    from finetune_trainer.group.supervisor import supervise

    end = supervise(place, arguments)
    result = end.result
    if end.code != ExitCode.DONE and (result is None or result.outcome != outcome_of(end.code)):
        # rank 0 does not know what became of the others
        log.error("%s", end.message, extra={"exit_code": end.code})
        told = ended_with(run.identity.uid, end.code, end.message)
        figures = {"step", "loss", "resumed_from_step"}
        result = told if result is None else told.model_copy(update=result.model_dump(include=figures))
    if result is not None:
        leave(settings.termination_file, result)
    return end.code


def _carry_out(run: TrainingRun, digest: str, file: Path, board: Board, overwrite: bool, settings: Settings) -> int:
    from finetune_trainer.run import accompany, perform

    with ExitStack() as stack:
        follows = settings.seat is not None and not settings.seat.leads
        listener = Listeners([]) if follows else _telemetry(run, board, settings, stack)
        stop = Stop(run.grace_seconds if settings.in_pod else None)
        stack.enter_context(
            stop_signals(
                stop,
                on_signal=lambda: listener.message("Stopping; saving the state"),
                on_last_call=lambda: _last_call(run, board, stop, settings),
            )
        )
        if follows:
            accompany(run, digest, settings, listener, stop)
        finished = perform(run, digest, settings, listener, stop, overwrite)
    leave(settings.termination_file, finished.result)
    if settings.log_format == "json":
        log.info("published %s", finished.result.manifest_uri, extra={"step": finished.result.step})
    else:
        finished.show(Console(soft_wrap=True, highlight=False), file)
    return ExitCode.DONE


def _telemetry(run: TrainingRun, board: Board, settings: Settings, stack: ExitStack) -> Listener:
    """Everything that listens to the run, closed with `stack`."""
    listeners: list[Listener] = [board]
    if settings.metrics_port is not None:
        from finetune_trainer.telemetry.metrics import Metrics
        from finetune_trainer.telemetry.server import serving

        metrics = Metrics(run.identity.namespace, run.identity.name, run.method.name)
        listeners.append(metrics)
        port = stack.enter_context(serving(settings.metrics_port, board, metrics.registry))
        log.info("serving /metrics, /progress and /healthz on port %d", port)
    console = Console(stderr=True)
    if settings.log_format == "text" and console.is_terminal:
        from finetune_trainer.telemetry.progress_bar import ProgressBar

        listeners.append(stack.enter_context(ProgressBar(console)))
    else:
        listeners.append(LogListener())
    return Listeners(listeners)


def _last_call(run: TrainingRun, board: Board, stop: Stop, settings: Settings) -> None:
    """Ends the process before SIGKILL would, whatever it is busy with: the exit code then says that nothing failed."""
    stage = board.progress().stage
    error = Interrupted(
        f"stopped while {stage}: the {run.grace_seconds} s of grace did not suffice to come to an end; the same run "
        "goes on from its last checkpoint"
    )
    _leave_failure(run, board, error, settings)
    log.error("%s", error, extra={"exit_code": int(error.exit_code)})
    words = [threading.Thread(target=word, daemon=True) for word in stop.last_words]
    for thread in words:
        thread.start()
    for thread in words:
        thread.join(RESERVE_SECONDS / 2)
    logging.shutdown()
    # not sys.exit: this is not the main thread, and threads that wait for a store would keep the process alive
    os._exit(error.exit_code)


def _leave_failure(run: TrainingRun | None, board: Board, error: Exception, settings: Settings) -> None:
    progress = board.progress()
    uid = run.identity.uid if run is not None else ""
    leave(settings.termination_file, failure(uid, error, progress.step, progress.loss, progress.resumed_from_step))
