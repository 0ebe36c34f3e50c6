"""The report, the contact sheet and the figures of the judgement."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from finetune_trainer.evaluation.contact_sheet import contact_sheet
from finetune_trainer.evaluation.curve import loss_curve, moving_mean
from finetune_trainer.evaluation.judgement import Judged, feature_distances, figures, names_subject, shape_in, share
from finetune_trainer.evaluation.report import ReportData, judgement_rows, render_report
from PIL import Image

RED, BLUE = (200, 0, 0), (0, 0, 200)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new("RGB", size, colour)


class Page(HTMLParser):
    """What a browser would see: pictures, their texts, and whatever it would have to fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: dict[str, Image.Image] = {}
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        source = values.get("src") or values.get("href") or ""
        if source.startswith("data:image/"):
            data = base64.b64decode(source.partition(",")[2])
            self.pictures[values["alt"]] = Image.open(io.BytesIO(data)).convert("RGB")
        elif source or tag in ("script", "link", "iframe"):
            self.fetched.append(source or tag)


@pytest.fixture
def data() -> ReportData:
    return ReportData(
        title="my <dog>",
        method="lora",
        prompts=["a photo of sks", "a circle"],
        before=[[plain(RED)] * 2, [plain(RED)] * 2],
        after=[[plain(BLUE)] * 2, [plain(RED, (512, 256))] * 2],
        training_pictures=[plain(BLUE)],
        losses=[1.0, 0.5, 0.25, 0.125],
        settings={"Rank": 16, "Prompt": '"><script>alert(1)</script>'},
        provenance={"Base model": "builtin://tiny-shapes"},
        judgement={"fidelityBefore": 0.0, "fidelityAfter": 0.9375, "drift": 1.5},
    )


def test_the_report_holds_everything_and_fetches_nothing(data: ReportData) -> None:
    text = render_report(data)
    page = Page(text)
    assert page.fetched == []
    assert set(page.pictures) == {
        "training picture 1",
        *(f"{p}, {when}, seed {s}" for p in data.prompts for when in ("before", "after") for s in (0, 1)),
    }
    assert page.pictures["a photo of sks, before, seed 0"].getpixel((8, 8)) == RED, "small pictures are exact"
    assert page.pictures["a photo of sks, after, seed 1"].getpixel((8, 8)) == BLUE
    assert page.pictures["a circle, after, seed 0"].size == (384, 192), "large ones are scaled down"
    assert "<title>my &lt;dog&gt;</title>" in text
    assert "<script>" not in text
    assert "prefers-color-scheme: dark" in text
    assert re.search(r"<td>Subject fidelity</td>\s*<td[^>]*>0%</td>\s*<td[^>]*>94%</td>", text)
    assert "moved by 1.50" in text


def test_without_figures_and_losses_the_report_does_not_speak_of_them(data: ReportData) -> None:
    text = render_report(ReportData(**{**fields(data), "judgement": None, "losses": [0.5]}))
    assert "Judgement" not in text
    assert "<svg" not in text


def fields(data: ReportData) -> dict[str, object]:
    return {name: getattr(data, name) for name in data.__dataclass_fields__ if name != "images_per_prompt"}


def test_only_pairs_of_figures_become_rows() -> None:
    assert judgement_rows({"leakAfter": 0.5, "drift": 1.0}) == []
    assert [row[:3] for row in judgement_rows({"leakBefore": 0.0, "leakAfter": 0.5})] == [("Leak", "0%", "50%")]


def test_the_curve_runs_from_the_first_loss_to_the_last() -> None:
    curve = loss_curve([4.0, 3.0, 2.0, 1.0], width=300, height=100)
    assert curve is not None
    assert curve.raw == "0.0,0.0 100.0,33.3 200.0,66.7 300.0,100.0"
    assert (curve.low, curve.high, curve.steps) == (1.0, 4.0, 4)
    assert loss_curve([1.0], 300, 100) is None


def test_a_long_training_is_thinned_but_keeps_its_end() -> None:
    curve = loss_curve([float(i) for i in range(10_000)], width=100, height=100)
    assert curve is not None
    points = curve.raw.split(" ")
    assert len(points) <= 304
    assert points[-1] == "100.0,0.0"


def test_a_moving_mean() -> None:
    assert moving_mean([4, 2, 0, 2, 4], 2) == [4, 3, 1, 1, 3]


def test_the_contact_sheet_shows_each_picture_in_its_place() -> None:
    sheet = contact_sheet("t" * 300, [plain(BLUE)], ["p"], [[plain(RED)] * 9], [[plain(BLUE, (32, 16))] * 9])
    # 24 margin, 72 labels, 8 columns of 128 + 8; a heading of 30 for the sheet and for each row
    assert sheet.size == (24 + 72 + 8 * 136 - 8 + 24, 24 + 30 + (30 + 136) + (30 + 2 * 136) + 24)
    assert sheet.getpixel((24 + 72 + 64, 24 + 60 + 64)) == BLUE
    before, after = 24 + 30 + 166 + 30 + 64, 24 + 30 + 166 + 30 + 136 + 64
    assert [sheet.getpixel((24 + 72 + column * 136 + 64, before)) for column in range(8)] == [RED] * 8
    assert [sheet.getpixel((24 + 72 + column * 136 + 64, after)) for column in range(8)] == [BLUE] * 8


def judged(prompt: str, classes: str, feature: float) -> Judged:
    return Judged(prompt, tuple(classes.split()), np.full((len(classes.split()), 4), feature, np.float32))


def test_fidelity_leak_accuracy_and_drift_of_known_answers() -> None:
    before = [judged("a photo of sks", "circle none", 0), judged("a red circle", "circle circle square circle", 0)]
    after = [judged("a photo of sks", "subject subject", 9), judged("a red circle", "subject circle circle none", 2)]
    assert figures(before, after) == {
        "fidelityBefore": 0.0,
        "fidelityAfter": 1.0,
        "leakBefore": 0.0,
        "leakAfter": 0.25,
        "classAccuracyBefore": 0.75,
        "classAccuracyAfter": 0.5,
        "drift": 4.0,  # four features, each moved by 2; pictures of the subject itself are meant to move
    }


def test_what_no_prompt_asks_for_is_not_told() -> None:
    rows = [judged("a photo of ohwx", "subject", 0)]
    assert figures(rows, rows) == {"fidelityBefore": 1.0, "fidelityAfter": 1.0}


def test_words_of_prompts() -> None:
    assert names_subject("a photo of SKS on a green background")
    assert not names_subject("a photo of asks")
    assert shape_in("a red star") == "star"
    assert shape_in("a dog") is None


def test_distances_are_between_pictures_of_the_same_place() -> None:
    first, second = np.zeros((2, 2), np.float32), np.array([[3, 4], [0, 0]], np.float32)
    assert feature_distances(first, second).tolist() == [5.0, 0.0]


def test_no_pictures_have_no_share() -> None:
    with pytest.raises(ValueError, match="no pictures to judge"):
        share([], "subject")
