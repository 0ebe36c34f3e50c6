"""Prompts of any length, cut into windows of what a text encoder reads at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def windows(pieces: Iterable[Sequence[int]], room: int) -> list[list[int]]:
    """Token ids in windows of at most `room`, at least one window.

    A piece (the tokens of one new word) stays whole: where it does not fit any more it opens the next window, as in
    AUTOMATIC1111's web UI. One that is larger than a window is cut. Other than there, nothing is moved to the next
    window for the sake of a comma.
    """
    found: list[list[int]] = [[]]
    for piece in pieces:
        if len(found[-1]) + len(piece) > room and len(piece) <= room:
            found.append([])
        for token in piece:
            if len(found[-1]) == room:
                found.append([])
            found[-1].append(token)
    return found


def framed(found: Sequence[Sequence[int]], chunks: int, room: int, begin: int, end: int, pad: int) -> list[int]:
    """The first `chunks` windows one after the other, each begun, ended and padded to room + 2; empty ones where there
    are fewer."""
    row: list[int] = []
    for index in range(chunks):
        tokens = found[index] if index < len(found) else []
        row += [begin, *tokens, end, *[pad] * (room - len(tokens))]
    return row


def word_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Finds `words` (one or more) as words of their own, in any case (CLIP reads lower case alone); the longest where
    one is the beginning of another. Splitting with it gives text and words in turn."""
    alternatives = []
    for word in sorted(words, key=len, reverse=True):
        before = r"(?<!\w)" if re.match(r"\w", word) else ""
        after = r"(?!\w)" if re.match(r"\w", word[-1]) else ""
        alternatives.append(f"{before}{re.escape(word)}{after}")
    return re.compile(f"({'|'.join(alternatives)})", re.IGNORECASE)


def words_in(text: str, words: Iterable[str]) -> frozenset[str]:
    """Those of `words` (one or more) that a text encoder which knows them all finds in `text`."""
    words = tuple(words)
    found = {match.lower() for match in word_pattern(words).findall(text)}
    return frozenset(word for word in words if word.lower() in found)
