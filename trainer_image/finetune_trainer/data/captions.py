"""What a sample is called: a picture's own caption or a template, with its tags shuffled, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune_trainer.data.draw import Draw

TOKENS_PER_WINDOW = 75
"""Of a CLIP text encoder, begin and end left out. captions.maxTokens is a multiple of it."""
ChunksOf = Callable[[str], int]
"""Windows of tokens that a text fills."""


@dataclass(frozen=True)
class Captions:
    """Of pictures, by their number."""

    choices: tuple[tuple[str, ...], ...]
    """For each picture the captions to draw from, one or more."""
    shuffle_tags: bool = False
    dropout: float = 0.0
    """Share of samples without a caption."""

    @classmethod
    def alike(cls, captions: Sequence[str], pictures: int) -> Captions:
        """The same to draw from for all `pictures`."""
        return cls((tuple(captions),) * pictures)

    def all(self) -> tuple[str, ...]:
        """Different ones, before anything is shuffled."""
        return tuple(dict.fromkeys(text for choices in self.choices for text in choices))

    def of(self, picture: int, drawn: Draw) -> str:
        """The caption of a sample."""
        if self.dropout and drawn.drops_caption(self.dropout):
            return ""
        choices = self.choices[picture]
        caption = choices[drawn.template(len(choices))] if len(choices) > 1 else choices[0]
        return shuffled(caption, drawn) if self.shuffle_tags else caption


def shuffled(caption: str, drawn: Draw) -> str:
    """`caption` with its comma-separated tags in a drawn order; the first stays in its place.

    It is where the word for the subject stands, and the place is part of what is learned: OneTrainer keeps one tag
    unless told otherwise, sd-scripts (keep_tokens) none.
    """
    first, *others = [tag.strip() for tag in caption.split(",") if tag.strip()] or [""]
    return ", ".join([first, *(others[index] for index in drawn.tag_order(len(others)))])


def kept_part(caption: str, chunks: int, chunks_of: ChunksOf) -> str:
    """As many words of `caption`, from its beginning, as fit into `chunks` windows."""
    words = caption.split()
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if chunks_of(" ".join(words[:middle])) <= chunks else (low, middle - 1)
    return " ".join(words[:low])
