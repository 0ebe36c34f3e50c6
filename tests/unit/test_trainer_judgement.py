"""Figures of known answers, their intervals, which prompts ask for what, and which step is the best."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from finetune_api.methods import MethodSpec
from finetune_trainer.evaluation.best import JudgedStep, best_of, gives_up
from finetune_trainer.evaluation.budget import Budget
from finetune_trainer.evaluation.intervals import Figure, mean, mean_over_pairs, share
from finetune_trainer.evaluation.judgement import (
    Shown,
    Target,
    background_in,
    colour_in,
    copy_radius,
    judged,
    shape_in,
    target_of,
)
from finetune_trainer.evaluation.seen import Seen, Verdicts
from finetune_trainer.evaluation.wording import judged_prompts, wording_of, words_of
from hypothesis import given
from hypothesis import strategies as st

# --- intervals


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Newcombe 1998 (doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_shares_have_wilsons_interval(hits: int, n: int, low: float, high: float) -> None:
    figure = share(hits, n)
    assert (figure.value, figure.n) == (hits / n, n)
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_share_lies_in_its_interval_and_that_in_0_to_1(pair: tuple[int, int]) -> None:
    figure = share(*pair)
    assert 0 <= figure.low <= figure.value <= figure.high <= 1
    assert figure.low < figure.high


def test_a_means_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    numbers = np.random.default_rng(5)
    figures = [mean(numbers.normal(3.0, 2.0, 64)) for _ in range(200)]
    assert 0.90 <= np.mean([f.low <= 3.0 <= f.high for f in figures]) <= 0.98


def test_an_interval_over_pairs_holds_the_true_mean_as_often_as_it_says() -> None:
    numbers, figures = np.random.default_rng(6), []
    for _ in range(100):
        points = numbers.uniform(0, 1, 40)
        figures.append(mean_over_pairs([np.abs(points[:, None] - points[None])]))
    # two uniform numbers are a third apart
    assert 0.88 <= np.mean([f.low <= 1 / 3 <= f.high for f in figures]) <= 0.99
    assert np.mean([f.value for f in figures]) == pytest.approx(1 / 3, abs=0.01)


def test_the_same_pictures_have_the_same_interval() -> None:
    assert mean([1.0, 2.0, 4.0]) == mean([1.0, 2.0, 4.0])


@pytest.mark.parametrize("call", [lambda: share(0, 0), lambda: mean([]), lambda: mean_over_pairs([np.zeros((1, 1))])])
def test_no_pictures_have_no_figure(call: Callable[[], Figure]) -> None:
    with pytest.raises(ValueError, match=r"no pictures to judge|takes two pictures"):
        call()


# --- wording


def lora(prompt: str, class_prompt: str | None = None) -> MethodSpec:
    prior = {"priorPreservation": {"classPrompt": class_prompt}} if class_prompt else {}
    return MethodSpec.model_validate({"lora": {"prompt": prompt, **prior}})


@pytest.mark.parametrize(
    ("spec", "subject", "class_words", "class_prompt"),
    [
        (lora("a photo of a sks circle", "a circle"), {"sks"}, {"circle"}, "a circle"),
        (lora("a photo of a sks circle"), {"sks"}, {"circle"}, "a photo of a circle"),
        (lora("ohwx woman, portrait", "photo of a woman"), {"ohwx"}, {"woman"}, "photo of a woman"),
        (lora("a photo of sks"), {"sks"}, set(), None),
        (lora("a photo"), {"a", "photo"}, set(), None),
        (lora("a dog", "a dog"), {"dog"}, {"dog"}, "a dog"),
    ],
)
def test_the_rare_word_is_found(spec: MethodSpec, subject: set, class_words: set, class_prompt: str | None) -> None:
    wording = wording_of(spec)
    assert (wording.subject, wording.class_words, wording.class_prompt) == (subject, class_words, class_prompt)


@pytest.mark.parametrize(
    ("spec", "subject", "class_words", "subject_prompt", "class_prompt"),
    [
        (
            {"textualInversion": {"tokens": [{"placeholder": "<cat-toy>", "initializer": "toy"}]}},
            {"<cat-toy>"},
            {"toy"},
            "a photo of <cat-toy>",
            "a photo of toy",
        ),
        (
            {"textualInversion": {"tokens": [{"placeholder": "<Style>"}]}},
            {"<style>"},
            set(),
            "a photo of <Style>",
            None,
        ),
        (
            {
                "lora": {
                    "prompt": "a photo of <dog> dog",
                    "tokens": [{"placeholder": "<dog>", "initializer": "animal"}],
                    "priorPreservation": {"classPrompt": "a photo of a dog"},
                }
            },
            {"<dog>"},
            {"dog"},
            "a photo of <dog> dog",
            "a photo of a dog",
        ),
        ({"hypernetwork": {"prompt": "sks dog"}}, {"sks"}, {"dog"}, "sks dog", "dog"),
    ],
)
def test_new_words_stand_for_themselves(
    spec: dict, subject: set, class_words: set, subject_prompt: str, class_prompt: str | None
) -> None:
    wording = wording_of(MethodSpec.model_validate(spec))
    assert (wording.subject, wording.class_words) == (subject, class_words)
    assert (wording.subject_prompt, wording.class_prompt) == (subject_prompt, class_prompt)


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ("a photo of a SKS circle, on a red background", "subject"),
        ("sks", "subject"),
        ("a circle", "class"),
        ("a big red circle.", "class"),
        ("a photo of asks", "other"),
        ("a blue star on a yellow background", "other"),
    ],
)
def test_what_a_prompt_asks_for(prompt: str, kind: str) -> None:
    assert wording_of(lora("a photo of a sks circle", "a circle")).kind(prompt) == kind


def test_prompts_for_subject_and_class_are_added_where_none_asks_for_them() -> None:
    wording = wording_of(lora("a photo of a sks circle", "a circle"))
    both = ("a photo of a sks circle", "a circle")
    assert judged_prompts(wording, ["a star", "a star"]) == (*both, "a star")
    assert judged_prompts(wording, ["a sks thing", "one circle"]) == ("a sks thing", "one circle")
    assert judged_prompts(wording_of(lora("sks")), ["a star"]) == ("sks", "a star")


def test_clip_reads_the_prompt_without_the_rare_word() -> None:
    wording = wording_of(lora("a photo of a sks circle", "a circle"))
    assert wording.without_subject("a SKS, circle on grass") == "a circle on grass"


def test_words_of_prompts() -> None:
    assert words_of("A “sks” dog, (red).") == ["a", "sks", "dog", "red"]
    assert (shape_in("a red star"), shape_in("a dog")) == ("star", None)
    assert (background_in("a star on a red background"), background_in("a background")) == ("red", None)
    assert (colour_in("a red star on a blue background"), colour_in("a star on a blue background")) == ("red", None)


# --- figures by a classifier


def verdicts(text: str) -> Verdicts:
    """ "red circle blue" is a red circle on blue."""
    colours, classes, backgrounds = zip(*(one.split() for one in text.split(", ")), strict=True)
    return Verdicts(classes, colours, backgrounds)


def seen(text: str, feature: float | Sequence[float] = 0.0) -> Seen:
    found = verdicts(text)
    rows = np.broadcast_to(np.asarray(feature, np.float32).reshape(-1, 1), (len(found.classes), 4))
    return Seen(np.ascontiguousarray(rows), found)


def shown(prompt: str, text: str, feature: float | Sequence[float] = 0.0) -> Shown:
    kind = wording_of(lora("a photo of a sks circle", "a circle")).kind(prompt)
    return Shown(prompt, kind, seen(text, feature))


TRAINING = seen("red subject cyan, red subject blue, blue subject pink", [0.0, 1.0, 3.0])


def test_every_figure_of_a_classifier() -> None:
    base = [
        shown("a sks circle", "red circle white, red circle white"),
        shown("a sks circle on a red background", "red circle red, red circle red"),
        shown("a circle", "red circle white, red circle white"),
        shown("a blue star on a red background", "blue star red, blue star red"),
    ]
    now = [
        shown("a sks circle", "red none white, red none white", [0.0, 8.0]),
        shown("a sks circle on a red background", "red subject red, red subject cyan", [0.1, 4.0]),
        shown("a circle", "red subject white, red circle white, red circle red, red none red", [2.0] * 4),
        shown("a blue star on a red background", "blue star red, blue subject red", 0.5),
    ]
    base[2] = shown("a circle", ", ".join(["red circle white"] * 4))
    found = judged(TRAINING, base, now)
    assert {name: (figure.value, figure.n) for name, figure in found.items()} == {
        "fidelity": (1.0, 2),  # of the prompt whose background is in no training picture, and of no other
        "promptFidelity": (0.5, 2),
        "diversity": (pytest.approx((16 + 7.8) / 2, abs=1e-5), 4),  # four features, each so far apart
        "leak": (0.25, 4),
        "classAccuracy": (0.5, 4),
        "drift": (4.0, 4),
        "otherLeak": (0.5, 2),
        "otherAccuracy": (0.5, 2),
        "otherDrift": (1.0, 2),
        "nearestDistance": (pytest.approx((0 + 10 + 0.2 + 2) / 4, abs=1e-5), 4),
        "nearCopies": (0.5, 4),  # nearer than 1, half the distance of the first two
    }


def test_without_a_prompt_on_a_new_background_all_prompts_of_the_subject_count() -> None:
    now = [shown("sks on a blue background", "red subject blue, red none blue"), shown("sks", "red subject red")]
    assert judged(TRAINING, now, now)["fidelity"].n == 3


def test_what_no_prompt_asks_for_is_not_told() -> None:
    rows = [shown("sks", "red subject red")]
    assert set(judged(TRAINING, rows, rows)) == {"fidelity", "nearestDistance", "nearCopies"}


@pytest.mark.parametrize(
    ("training", "target"),
    [
        ("red subject cyan, blue subject red", Target("subject", None)),
        ("red star cyan, red star red, blue circle red", Target("star", "red")),
        ("red star cyan, blue star red, pink star red", Target("star", None)),
        ("red none cyan, blue none red", None),
        ("red star cyan, red circle red, red ring red", None),
    ],
)
def test_what_the_training_pictures_are_called(training: str, target: Target | None) -> None:
    assert target_of(verdicts(training)) == target


def test_a_red_star_is_found_by_shape_and_colour() -> None:
    assert Target("star", "red").hits(verdicts("red star cyan, blue star red, red circle red")) == [True, False, False]
    assert target_of(None) is None


# --- figures by an encoder


def at(*degrees: float) -> np.ndarray:
    """Features of length 1 in two dimensions."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)


def test_every_figure_of_an_encoder() -> None:
    training = Seen(at(0, 20))
    text = at(60)[0]
    base = [Shown("a sks dog", "subject", Seen(at(80, 90)), text), Shown("a dog", "class", Seen(at(80, 90)))]
    now = [Shown("a sks dog", "subject", Seen(at(5, 60)), text), Shown("a dog", "class", Seen(at(70, 90)))]
    found = judged(training, base, now)

    def cos(*degrees: float) -> float:
        return float(np.mean(np.cos(np.radians(degrees))))

    assert {name: figure.value for name, figure in found.items()} == pytest.approx(
        {
            "fidelity": cos(5, 15, 60, 40),
            "promptFidelity": cos(55, 0),
            "diversity": chord(55),
            "leak": cos(70, 50, 90, 70) - cos(80, 60, 90, 70),
            "drift": chord(10) / 2,
            "nearestDistance": (chord(5) + chord(40)) / 2,
            "nearCopies": 0.5,
        },
        abs=1e-6,
    )
    assert found["leak"].n == 2


def chord(degrees: float) -> float:
    return 2 * float(np.sin(np.radians(degrees) / 2))


def test_an_encoder_that_cannot_read_tells_no_prompt_fidelity() -> None:
    rows = [Shown("sks", "subject", Seen(at(5, 60)))]
    assert "promptFidelity" not in judged(Seen(at(0)), rows, rows)


def test_one_training_picture_has_no_radius_for_copies() -> None:
    assert copy_radius(at(10)) is None
    assert copy_radius(at(10, 10)) is None, "the same picture twice is one"
    assert copy_radius(at(10, 10, 30)) == pytest.approx(chord(20) / 2, abs=1e-6)


# --- the best step


def steps(*rows: tuple[float, float | None]) -> list[JudgedStep]:
    """(fidelity, leak) at steps 10, 20 …"""
    return [
        JudgedStep(
            10 * i,
            {"fidelity": Figure(f, f, f, 64)} | ({} if leak is None else {"leak": Figure(leak, leak, leak, 64)}),
        )
        for i, (f, leak) in enumerate(rows, 1)
    ]


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([], None),
        ([(0.5, 0.0)], 10),
        ([(0.5, 0.0), (0.9, 0.1), (0.7, 0.0)], 20),
        ([(0.5, 0.0), (0.9, 0.21), (0.7, 0.2)], 30),
        ([(0.9, 0.1), (0.9, 0.0)], 10),
        ([(0.1, 0.3), (0.9, 0.5), (0.6, 0.4)], 20),  # none under the limit: the lowest leak has learned nothing
        ([(0.9, 0.5), (0.1, 0.2)], 20),
        ([(0.5, None), (0.6, None)], 20),
    ],
)
def test_the_best_step(rows: list, best: int | None) -> None:
    found = best_of(steps(*rows), max_leak=0.2)
    assert (found.step if found else None) == best


@pytest.mark.parametrize(
    ("fidelities", "patience", "ends"),
    [([0.5], 1, False), ([0.5, 0.4], 1, True), ([0.5, 0.4], 2, False), ([0.5, 0.5, 0.5], 2, True), ([], 1, False)],
)
def test_patience(fidelities: list[float], patience: int, ends: bool) -> None:
    history = steps(*((f, 0.0) for f in fidelities))
    assert gives_up(history, 0.2, patience) is ends
    assert not gives_up(history, 0.2, None)


# --- a tenth of the time


def test_judging_takes_at_most_a_tenth_of_the_time() -> None:
    now = 0.0
    budget = Budget(lambda: now)
    done = []
    for second in itertools.count(1):
        now += 1.0
        if second % 10 == 0 and budget.affords():
            done.append(second)
            budget.charge(2.0)
            now += 2.0
        if second == 100:
            break
    assert done == [10, 40, 60, 80, 100]
    assert budget.share == pytest.approx(0.1)
    again = Budget(lambda: now)
    again.load(budget.state())
    assert (again.trained, again.spent) == pytest.approx((100, 10))
    assert not again.affords()
    now += 20
    assert again.affords()
