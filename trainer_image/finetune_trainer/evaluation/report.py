"""report.html: what was trained, how it went, and pictures before and after. One file that needs no other."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from finetune_trainer.evaluation.curve import loss_curve

CURVE_SIZE = (640.0, 180.0)
LARGEST = 384
"""Pixels; larger pictures are scaled down, so that the report stays small enough to send."""

JUDGEMENT_WORDS = {
    "fidelity": ("Subject fidelity", "pictures for prompts with the rare word that show the subject; higher is better"),
    "leak": ("Leak", "pictures for prompts without the rare word that show the subject all the same; lower is better"),
    "classAccuracy": ("Class accuracy", "pictures that show the shape that the prompt names; higher is better"),
}


@dataclass(frozen=True)
class ReportData:
    """What the report shows."""

    title: str
    method: str
    prompts: Sequence[str]
    before: Sequence[Sequence[Image.Image]]
    """For each prompt its pictures; picture i has seed i, before and after."""
    after: Sequence[Sequence[Image.Image]]
    training_pictures: Sequence[Image.Image]
    losses: Sequence[float]
    settings: Mapping[str, object]
    """Label → value."""
    provenance: Mapping[str, object]
    """Label → value."""
    judgement: Mapping[str, float] | None = None
    """As judgement.figures gives it."""
    images_per_prompt: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images_per_prompt", max((len(row) for row in self.before), default=0))


def render_report(data: ReportData) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("finetune_trainer.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        data=data,
        curve=loss_curve(data.losses, *CURVE_SIZE),
        curve_size=CURVE_SIZE,
        judgement=judgement_rows(data.judgement or {}),
        drift=(data.judgement or {}).get("drift"),
        picture=data_uri,
    )


def judgement_rows(figures: Mapping[str, float]) -> list[tuple[str, str, str, str]]:
    """(name, before, after, meaning) of each figure that there is, as percentages."""
    return [
        (words, f"{figures[f'{key}Before']:.0%}", f"{figures[f'{key}After']:.0%}", meaning)
        for key, (words, meaning) in JUDGEMENT_WORDS.items()
        if f"{key}Before" in figures and f"{key}After" in figures
    ]


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
