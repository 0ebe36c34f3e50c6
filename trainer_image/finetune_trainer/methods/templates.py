"""Captions around a new word, so that it learns what the pictures show and not one sentence
(https://arxiv.org/abs/2208.01618, section 4).

The sentences say as little as possible about the pictures: what they name, the word need not learn.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Literal

Property = Literal["Object", "Style"]

# one {} each: the place of the new word
_OBJECT_VIEWS = ("photo", "cropped photo", "bright photo", "dark photo", "good photo", "picture", "rendition")
_OBJECT_KINDS = ("", "small ", "large ", "clean ", "nice ", "cool ")
_STYLE_WORKS = ("painting", "drawing", "picture", "rendering", "photo", "sketch", "print")
_STYLE_KINDS = ("", "small ", "large ", "bright ", "dark ", "good ")

OBJECT = (
    *(f"a {view} of {article} {{}}" for view, article in product(_OBJECT_VIEWS, ("a", "the"))),
    *(f"a photo of {article} {kind}{{}}" for kind, article in product(_OBJECT_KINDS[1:], ("a", "the", "my"))),
)
STYLE = (
    *(f"a {kind}{work} in the style of {{}}" for work, kind in product(_STYLE_WORKS, _STYLE_KINDS)),
    *(f"the {work} in the style of {{}}" for work in _STYLE_WORKS),
)
_LAST_RESORT = ("a photo of {}", "{}")


def templates_for(prop: Property, known: Callable[[str], bool]) -> tuple[str, ...]:
    """The templates of `prop` all of whose words the model knows.

    A model with a small vocabulary would spell the others in letters, and learn the word beside noise. Where it knows
    none of them: a plain "a photo of {}" if it knows that, and the word alone.

    Args:
        prop: Object or Style.
        known: whether a word is one token of the model.

    Returns:
        At least one, each with exactly one {}.
    """
    chosen = _known_of(OBJECT if prop == "Object" else STYLE, known)
    return chosen or _known_of(_LAST_RESORT, known)


def _known_of(templates: tuple[str, ...], known: Callable[[str], bool]) -> tuple[str, ...]:
    return tuple(t for t in templates if all(known(word) for word in t.split() if word != "{}"))
