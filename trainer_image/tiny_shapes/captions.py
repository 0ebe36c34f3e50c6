"""The captions that tiny-shapes learns: a small grammar over shapes, colours and backgrounds."""

from collections.abc import Iterator

import numpy as np
from finetune_trainer.builtin.vocabulary import COLOURS, GLUE_WORDS, RARE_WORDS, SHAPES

from .drawing import Shape

# How often each form is used. A picture's colours are drawn at random where its caption does not name them.
FORMS = (
    ("a {colour} {shape} on a {background} background", 0.60),
    ("a {colour} {shape}", 0.15),
    ("a {shape}", 0.15),
    ("a {shape} on a {background} background", 0.10),
)
PHOTO = "a photo of "
PHOTO_SHARE = 0.3
EMPTY_SHARE = 0.1

CAPTION_WORDS = (*GLUE_WORDS, *SHAPES, *COLOURS)
WORDS = (*CAPTION_WORDS, *RARE_WORDS)


def full_caption(content: Shape) -> str:
    """Names everything: "a red ring on a blue background"."""
    return FORMS[0][0].format(shape=content.shape, colour=content.colour, background=content.background)


def random_caption(content: Shape, rng: np.random.Generator) -> str:
    """One of the forms, "a photo of" before some, nothing at all for EMPTY_SHARE (for guidance without a caption)."""
    if rng.random() < EMPTY_SHARE:
        return ""
    form = FORMS[rng.choice(len(FORMS), p=[share for _, share in FORMS])][0]
    words = form.format(shape=content.shape, colour=content.colour, background=content.background)
    return PHOTO + words if rng.random() < PHOTO_SHARE else words


def all_contents() -> Iterator[Shape]:
    """Every shape in every colour on every other colour."""
    for shape in SHAPES:
        for colour in COLOURS:
            for background in COLOURS:
                if colour != background:
                    yield Shape(shape, colour, background)
