"""report.html: what was trained, how it went, and pictures before and after. One file that needs no other."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from finetune_trainer.evaluation.best import JudgedStep
from finetune_trainer.evaluation.curve import Chart, chart, loss_curve
from finetune_trainer.evaluation.found import Judgement, Pictures
from finetune_trainer.evaluation.meanings import MEANINGS, in_words
from finetune_trainer.publish.manifest import ManifestAttempt

CURVE_SIZE = (640.0, 180.0)
LARGEST = 384
"""Pixels; larger pictures are scaled down, so that the report stays small enough to send."""
SHOWN = 8
"""Pictures of a prompt: all of them lie beside the report."""
CHARTED = ("fidelity", "promptFidelity", "leak", "classAccuracy", "nearCopies")
"""What can be told on one scale. Each has a stroke of its own, for those who print without colours."""
STROKES = ("", "8 4", "2 3", "10 3 2 3", "4 2")


@dataclass(frozen=True)
class ReportData:
    """What the report shows."""

    title: str
    method: str
    pictures: Pictures
    training_pictures: Sequence[Image.Image]
    losses: Sequence[float]
    settings: Mapping[str, object]
    """Label → value."""
    provenance: Mapping[str, object]
    """Label → value."""
    learning_rates: Sequence[float] = ()
    """Of each step."""
    dataset: Sequence[tuple[str, str]] = ()
    """What was found in the pictures: label and value."""
    skipped: int = 0
    """Steps that changed nothing, because their loss or gradient was not finite."""
    efficiency: Mapping[str, object] = field(default_factory=dict)
    """Label → value."""
    attempts: Sequence[tuple[str, ...]] = field(default=())
    """Of each attempt: number, begin, end, steps from and to, how it ended."""


@dataclass(frozen=True)
class Row:
    """One figure in the table."""

    title: str
    before: str
    after: str
    interval: str
    n: int
    better: str
    meaning: str


def render_report(data: ReportData) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("finetune_trainer.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    judgement = data.pictures.judgement
    return environment.get_template("report.html.j2").render(
        data=data,
        shown=SHOWN,
        curve=loss_curve(data.losses, *CURVE_SIZE),
        rates=loss_curve(data.learning_rates, *CURVE_SIZE),
        curve_size=CURVE_SIZE,
        judgement=judgement,
        rows=judgement_rows(judgement) if judgement is not None else [],
        course=course_of(judgement.history, len(data.losses)) if judgement is not None else None,
        strokes=dict(zip(CHARTED, STROKES, strict=True)),
        titles={name: meaning.title for name, meaning in MEANINGS.items()},
        picture=data_uri,
    )


def attempt_rows(attempts: Sequence[ManifestAttempt]) -> list[tuple[str, ...]]:
    """Rows for the table of attempts; the last one is at work."""
    rows = []
    for number, one in enumerate(attempts, 1):
        steps = f"{one.resumed_from_step or 0} to {one.step if one.step is not None else '?'}"
        how = (
            "this one"
            if number == len(attempts)
            else "was killed"
            if one.exit_code is None
            else f"exit {one.exit_code}"
        )
        rows.append((str(number), one.started, one.ended or "–", steps, how))
    return rows


def judgement_rows(judgement: Judgement) -> list[Row]:
    """Each figure that there is, in the order of their explanation. What compares with the base model has no before."""
    rows = []
    for name, meaning in MEANINGS.items():
        figure, before = judgement.after.get(name), judgement.before.get(name)
        if figure is None:
            continue
        value, interval = in_words(name, figure, judgement.by_classifier)
        compares = "rift" in name or ("eak" in name and not judgement.by_classifier)
        was = "" if before is None or compares else in_words(name, before, judgement.by_classifier)[0]
        words = meaning.by_classifier if judgement.by_classifier else meaning.by_encoder
        rows.append(Row(meaning.title, was, value, interval, figure.n, meaning.better, words))
    return rows


def course_of(history: Sequence[JudgedStep], steps: int) -> Chart | None:
    """The judged steps as lines."""
    series = {name: [(one.step, one.figures[name].value) for one in history if name in one.figures] for name in CHARTED}
    return chart(series, steps, *CURVE_SIZE)


def data_uri(picture: Image.Image) -> str:
    """`picture` within a page: exact when it is small, at most 384 pixels wide when it is not."""
    buffer = io.BytesIO()
    if max(picture.size) <= 128:
        picture.convert("RGB").save(buffer, "PNG")
        kind = "png"
    else:
        scaled = picture.convert("RGB")
        scaled.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        scaled.save(buffer, "WEBP", quality=85)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
