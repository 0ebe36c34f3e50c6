"""The report and the contact sheet."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from finetune_trainer.evaluation.best import JudgedStep
from finetune_trainer.evaluation.contact_sheet import contact_sheet
from finetune_trainer.evaluation.curve import chart, loss_curve, moving_mean
from finetune_trainer.evaluation.found import Judgement, Pictures
from finetune_trainer.evaluation.intervals import Figure
from finetune_trainer.evaluation.meanings import FIGURES, MEANINGS
from finetune_trainer.evaluation.report import CHARTED, ReportData, attempt_rows, judgement_rows, render_report
from finetune_trainer.publish.manifest import ManifestAttempt
from PIL import Image

RED, BLUE = (200, 0, 0), (0, 0, 200)


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new("RGB", size, colour)


class Page(HTMLParser):
    """What a browser would see: pictures, their texts, and whatever it would have to fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: dict[str, Image.Image] = {}
        self.found: list[str] = []
        self.fetched: list[str] = []
        self.headings: set[str] = set()
        self.levels: list[int] = []
        self.charts: list[str] = []
        self.dashes: list[str] = []
        self._heading = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        source = values.get("src") or values.get("href") or ""
        if source.startswith("data:image/"):
            data = base64.b64decode(source.partition(",")[2])
            self.found.append(values["alt"])
            self.pictures[values["alt"]] = Image.open(io.BytesIO(data)).convert("RGB")
        elif source or tag in ("script", "link", "iframe"):
            self.fetched.append(source or tag)
        if tag == "svg":
            self.charts.append(values["aria-label"])
        if tag == "polyline" and "stroke-dasharray" in values:
            self.dashes.append(values["stroke-dasharray"])
        self._heading = tag == "h2"
        if tag in ("h1", "h2", "h3"):
            self.levels.append(int(tag[1]))

    def handle_data(self, data: str) -> None:
        if self._heading and data.strip():
            self.headings.add(data.strip())

    def handle_endtag(self, tag: str) -> None:
        self._heading = False


def figure(value: float, n: int = 64) -> Figure:
    return Figure(value, value - 0.05, value + 0.05, n)


@pytest.fixture
def judgement() -> Judgement:
    return Judgement(
        encoder="tiny-shapes' classifier, 128 features",
        by_classifier=True,
        images_per_prompt=64,
        step=4,
        before={"fidelity": figure(0.0), "leak": figure(0.0), "drift": figure(0.0)},
        after={"fidelity": figure(0.9375), "leak": figure(0.25), "drift": figure(1.5)},
        history=(
            JudgedStep(2, {"fidelity": figure(0.5), "leak": figure(0.125)}),
            JudgedStep(4, {"fidelity": figure(0.9375), "leak": figure(0.25)}),
        ),
        best_step=4,
        time_share=0.07,
    )


@pytest.fixture
def data(judgement: Judgement) -> ReportData:
    return ReportData(
        title="my <dog>",
        method="lora",
        pictures=Pictures(
            prompts=("a photo of sks", "a circle"),
            before=((plain(RED),) * 2, (plain(RED),) * 2),
            after=((plain(BLUE),) * 2, (plain(RED, (512, 256)),) * 2),
            on_the_way=(
                (0, [[plain(RED)], [plain(RED)]]),
                (2, [[plain(RED)], [plain(BLUE)]]),
                (4, [[plain(BLUE)], [plain(RED)]]),
            ),
            judgement=judgement,
        ),
        training_pictures=[plain(BLUE)],
        losses=[1.0, 0.5, 0.25, 0.125],
        settings={"Rank": 16, "Prompt": '"><script>alert(1)</script>'},
        provenance={"Base model": "builtin://tiny-shapes"},
        learning_rates=[1e-3, 5e-4, 2e-4, 1e-4],
        dataset=[("Pictures too small", "1: a.png")],
        efficiency={"Pictures a second": "5.08"},
        attempts=[("1", "2026-01-01", "–", "0 to 4", "this one")],
    )


def test_the_report_holds_everything_and_fetches_nothing(data: ReportData) -> None:
    text = render_report(data)
    page = Page(text)
    assert page.fetched == []
    prompts = data.pictures.prompts
    assert set(page.pictures) == {
        "training picture 1",
        *(f"{p}, {when}, seed {s}" for p in prompts for when in ("before", "after") for s in (0, 1)),
        *(f"{p}, {when}, seed 0" for p in prompts for when in ("base model", "step 2", "step 4")),
    }
    assert page.pictures["a photo of sks, before, seed 0"].getpixel((8, 8)) == RED, "small pictures are exact"
    assert page.pictures["a photo of sks, after, seed 1"].getpixel((8, 8)) == BLUE
    assert page.pictures["a circle, after, seed 0"].size == (384, 192), "large ones are scaled down"
    assert page.pictures["a circle, step 2, seed 0"].getpixel((8, 8)) == BLUE
    assert "<title>my &lt;dog&gt;</title>" in text
    assert "<script>" not in text
    assert {
        "Judgement",
        "On the way",
        "Loss",
        "Learning rate",
        "Settings",
        "Speed and memory",
        "Provenance",
    } <= page.headings
    assert "1: a.png" in text


def test_the_report_is_for_screens_of_all_sizes_for_paper_and_for_those_who_hear_it(data: ReportData) -> None:
    text = render_report(data)
    page = Page(text)
    assert '<html lang="en">' in text
    assert "width=device-width" in text
    for media in ("prefers-color-scheme: dark", "@media print", "@media (max-width"):
        assert media in text
    assert all(page.pictures), "every picture has a text"
    assert page.charts == [
        "Judged figures over 4 steps",
        "Loss over 4 steps",
        "Learning rate over 4 steps",
    ]
    assert len(page.dashes) == len(set(page.dashes)) == 2, "lines can be told apart without colours"
    assert page.levels.count(1) == 1
    assert all(below - above <= 1 for above, below in pairwise(page.levels)), "no level of headings is skipped"


def test_figures_stand_beside_their_interval_and_what_they_mean(judgement: Judgement) -> None:
    rows = {row.title: row for row in judgement_rows(judgement)}
    fidelity, drift = rows["Subject fidelity"], rows["Drift"]
    assert (fidelity.before, fidelity.after, fidelity.interval, fidelity.n) == ("0%", "94%", "89% to 99%", 64)
    assert "share of pictures" in fidelity.meaning
    assert (drift.before, drift.after) == ("", "1.500"), "the base model has not moved from itself"
    (row, *_) = judgement_rows(replace(judgement, by_classifier=False))
    assert (row.after, row.interval) == ("0.938", "0.887 to 0.988")
    assert "cosine" in row.meaning


def test_many_pictures_do_not_swell_the_report(data: ReportData) -> None:
    noise = Image.effect_noise((512, 512), 90).convert("RGB")
    drawn = replace(data.pictures, before=((noise,) * 64,) * 2, after=((noise,) * 64,) * 2)
    text = render_report(replace(data, pictures=drawn))
    assert len(Page(text).found) == 1 + 2 * 2 * 8 + 6, "the first eight of each prompt"
    assert len(text) < 8 << 20


def test_without_figures_and_losses_the_report_does_not_speak_of_them(data: ReportData) -> None:
    drawn = replace(data.pictures, judgement=None, on_the_way=())
    page = Page(render_report(replace(data, pictures=drawn, losses=[0.5], learning_rates=(), dataset=(), attempts=())))
    assert page.charts == []
    assert page.headings == {"Before and after", "Training pictures", "Settings", "Speed and memory", "Provenance"}


def test_attempts_in_rows() -> None:
    killed = ManifestAttempt(id="a", started="one", step=7)
    ended = ManifestAttempt(id="b", started="two", ended="three", exit_code=75, resumed_from_step=5, step=9)
    last = ManifestAttempt(id="c", started="four", resumed_from_step=9, step=12)
    assert attempt_rows([killed, ended, last]) == [
        ("1", "one", "–", "0 to 7", "was killed"),
        ("2", "two", "three", "5 to 9", "exit 75"),
        ("3", "four", "–", "9 to 12", "this one"),
    ]


def test_all_figures_are_explained() -> None:
    assert set(CHARTED) < set(FIGURES)
    assert len({meaning.title for meaning in MEANINGS.values()}) == len(MEANINGS)


def test_lines_share_their_steps_and_their_scale() -> None:
    drawn = chart({"a": [(0, 0.0), (10, 0.5)], "b": [(5, -1.0), (10, 1.0)], "c": [(1, 1.0)]}, 10, 100, 100)
    assert drawn is not None
    assert drawn.lines == {"a": "0.0,50.0 100.0,25.0", "b": "50.0,100.0 100.0,0.0"}
    assert (drawn.low, drawn.high, drawn.ends["a"]) == (-1.0, 1.0, (100.0, 25.0, 0.5))
    assert chart({"c": [(1, 1.0)]}, 10, 100, 100) is None


def test_the_curve_runs_from_the_first_loss_to_the_last() -> None:
    curve = loss_curve([4.0, 3.0, 2.0, 1.0], width=300, height=100)
    assert curve is not None
    assert curve.raw == "0.0,0.0 100.0,33.3 200.0,66.7 300.0,100.0"
    assert (curve.low, curve.high, curve.steps) == (1.0, 4.0, 4)
    assert loss_curve([1.0], 300, 100) is None


def test_the_curve_passes_over_losses_that_are_no_numbers() -> None:
    bad, worse = float("nan"), float("inf")
    for losses, raw in (
        ([4.0, bad, 2.0, 1.0], "0.0,0.0 100.0,0.0 200.0,66.7 300.0,100.0"),
        ([worse, 4.0, 2.0, bad], "0.0,0.0 100.0,0.0 200.0,100.0 300.0,100.0"),
    ):
        curve = loss_curve(losses, width=300, height=100)
        assert curve is not None
        assert curve.raw == raw


def test_steps_that_changed_nothing_are_told(data: ReportData) -> None:
    said = "2 of them changed nothing, because their loss or gradient was not finite"
    assert said in render_report(replace(data, skipped=2))
    assert "changed nothing" not in render_report(data)


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
