"""Prompts longer than a text encoder's window."""

import pytest
from finetune_trainer.families.windows import framed, windows, word_pattern, words_in
from hypothesis import given
from hypothesis import strategies as st

CASES: list[tuple[str, list[list[int]], list[list[int]]]] = [
    ("nothing", [], [[]]),
    ("fits", [[1], [2], [3]], [[1, 2, 3]]),
    ("one too many", [[1], [2], [3], [4]], [[1, 2, 3], [4]]),
    ("a word stays whole", [[1], [2], [8, 9], [3]], [[1, 2], [8, 9, 3]]),
    ("a word of a window's size", [[1], [7, 8, 9], [2]], [[1], [7, 8, 9], [2]]),
    ("a word larger than a window is cut", [[1], [6, 7, 8, 9], [2]], [[1, 6, 7], [8, 9, 2]]),
]


@pytest.mark.parametrize(("name", "pieces", "expected"), CASES, ids=[row[0] for row in CASES])
def test_windows_of_three(name: str, pieces: list[list[int]], expected: list[list[int]]) -> None:
    assert windows(pieces, 3) == expected


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=6)), st.integers(1, 8))
def test_nothing_is_lost_and_no_window_is_too_full(pieces: list[list[int]], room: int) -> None:
    found = windows(pieces, room)
    assert [token for window in found for token in window] == [token for piece in pieces for token in piece]
    assert all(len(window) <= room for window in found)
    assert len(found) == 1 or all(found), "none is empty but the only one"


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        (1, [90, 1, 2, 91]),
        (2, [90, 1, 2, 91, 90, 3, 91, 0]),
        (3, [90, 1, 2, 91, 90, 3, 91, 0, 90, 91, 0, 0]),
    ],
)
def test_each_window_has_begin_end_and_padding(chunks: int, expected: list[int]) -> None:
    assert framed([[1, 2], [3]], chunks, 2, 90, 91, 0) == expected


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a <dog> and sks", ["<dog>", "sks"]),
        ("a<dog>", ["<dog>"]),
        ("SKS, Sks.", ["SKS", "Sks"]),
        ("asks sksy tasks", []),
        ("sks dog", ["sks dog"]),
        ("sks dogs", ["sks"]),
        ("my (word+)", ["word+"]),
    ],
)
def test_words_are_found(prompt: str, found: list[str]) -> None:
    assert word_pattern(["<dog>", "sks", "sks dog", "word+"]).findall(prompt) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a photo of sks", {"sks"}),
        ("a photo of SKS, and a <Dog>", {"sks", "<Dog>"}),
        ("a photo of sksy", set()),
        # one that is the beginning of another is read where the other does not go on
        ("sks dog", {"sks dog"}),
        ("a sks and a sks dog", {"sks", "sks dog"}),
        ("", set()),
    ],
)
def test_a_text_has_the_words_that_are_read_in_it(text: str, found: set[str]) -> None:
    assert words_in(text, ["<Dog>", "sks", "sks dog"]) == found
