"""Contact sheets of a generation: pages of at most a hundred pictures, prompt by prompt, each with its seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont

from finetune_trainer.evaluation.contact_sheet import FAINT, GAP, INK, MARGIN, PAPER, fitting, thumbnail

COLUMNS = 10
PER_PAGE = 100
CELL = 112
LABEL = 16
HEADING = 30


@dataclass(frozen=True)
class Print:
    """A picture that is put on a sheet."""

    prompt: str
    label: str
    image: Image.Image
    """Square, CELL pixels wide."""

    @staticmethod
    def of(prompt: str, label: str, image: Image.Image) -> Print:
        """Of a picture of any size: its middle square, made small."""
        return Print(prompt, label, thumbnail(image, CELL))


def pages(count: int) -> Iterator[range]:
    """Which of `count` pictures are on each page."""
    return (range(start, min(start + PER_PAGE, count)) for start in range(0, count, PER_PAGE))


def sheet(title: str, prints: Sequence[Print]) -> Image.Image:
    """One page as an RGB picture; each prompt begins a row of its own."""
    groups = [(prompt, list(group)) for prompt, group in groupby(prints, key=lambda one: one.prompt)]
    columns = max(3, min(COLUMNS, max((len(group) for _, group in groups), default=0)))
    rows = sum(-(-len(group) // COLUMNS) for _, group in groups)
    width = 2 * MARGIN + columns * (CELL + GAP) - GAP
    height = 2 * MARGIN + HEADING * (1 + len(groups)) + rows * (CELL + LABEL + GAP)
    page = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(page)
    large, small, tiny = (ImageFont.load_default(size) for size in (20, 14, 11))
    room = width - 2 * MARGIN
    pen.text((MARGIN, MARGIN), fitting(title, large, room), INK, large)
    y = MARGIN + HEADING
    for prompt, group in groups:
        pen.text((MARGIN, y + 8), fitting(prompt, small, room), INK, small)
        y += HEADING
        for start in range(0, len(group), COLUMNS):
            for column, one in enumerate(group[start : start + COLUMNS]):
                x = MARGIN + column * (CELL + GAP)
                page.paste(one.image, (x, y))
                pen.text((x, y + CELL), fitting(one.label, tiny, CELL), FAINT, tiny)
            y += CELL + LABEL + GAP
    return page
