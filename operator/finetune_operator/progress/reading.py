"""What a trainer answered last, and how it stands in status.progress, status.engine and status.judgement."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from finetune_api.progress import EngineInUse, Judgement, Progress, Result
from finetune_api.status import EngineStatus, JudgementStatus, ProgressStatus

from finetune_operator.times import show


@dataclass(frozen=True)
class Reading:
    """`progress` is what was last read, at `at`; `stale`: the trainer has not answered for a while."""

    progress: Progress | None
    at: datetime | None
    stale: bool


def progress_status(old: ProgressStatus | None, reading: Reading | None) -> ProgressStatus | None:
    """status.progress after a reading."""
    if reading is None:
        return old
    if reading.progress is None or reading.at is None:
        return old.model_copy(update={"stale": True}) if old is not None and reading.stale else old
    said = reading.progress
    end = None
    if said.seconds_left is not None:
        end = show(reading.at + timedelta(seconds=min(said.seconds_left, 3e8)))
    return ProgressStatus(
        step=said.step,
        total_steps=said.total_steps,
        percent=percent(said.step, said.total_steps),
        stage=said.stage,
        loss=_number(said.loss),
        images_per_second=_number(said.images_per_second),
        estimated_end=end,
        stale=True if reading.stale else None,
        last_update_time=show(reading.at),
    )


def finished_progress(old: ProgressStatus | None, result: Result | None) -> ProgressStatus | None:
    """status.progress of a job that succeeded."""
    if result is None:
        return old.model_copy(update={"stale": None}) if old is not None else None
    total = max(result.step, old.total_steps if old is not None else 0)
    return ProgressStatus(
        step=result.step,
        total_steps=total,
        percent=percent(result.step, total),
        stage="Done",
        loss=_number(result.loss),
        images_per_second=old.images_per_second if old is not None else None,
        last_update_time=old.last_update_time if old is not None else None,
    )


def judgement_status(old: JudgementStatus | None, said: Judgement | None) -> JudgementStatus | None:
    """status.judgement after the trainer said `said`. An attempt that begins again has none at first: what was found
    before still holds."""
    if said is None:
        return old
    figures = {name: f"{value:.4g}" for name, value in said.figures.items()}
    return JudgementStatus(step=said.step, best_step=said.best_step, figures=figures or None)


def engine_status(old: EngineStatus | None, said: EngineInUse | None) -> EngineStatus | None:
    """status.engine after the trainer said `said`. An attempt has none before it has chosen: the latest choice still
    tells how steps were executed."""
    if said is None:
        return old
    predicted = None if said.predicted_bytes is None else f"{said.predicted_bytes / 2**30:.1f}Gi"
    return EngineStatus(
        kind=said.kind, does=said.does, why=said.why, fell_from=said.fell_from, predicted_memory=predicted
    )


def percent(step: int, total: int) -> str:
    """Whole percents, rounded down: 100% means done."""
    return f"{min(100, step * 100 // total)}%" if total else "0%"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
