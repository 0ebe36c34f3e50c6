"""Pictures of a run on one sheet: training pictures, then for each prompt before and after, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

CELL = 128
GAP = 8
MARGIN = 24
COLUMNS = 8
LABELS = 72
HEADING = 30
PAPER, INK, FAINT = (250, 250, 248), (28, 28, 30), (120, 120, 124)


def contact_sheet(
    title: str,
    training_pictures: Sequence[Image.Image],
    prompts: Sequence[str],
    before: Sequence[Sequence[Image.Image]],
    after: Sequence[Sequence[Image.Image]],
) -> Image.Image:
    """An RGB picture. `before` and `after` hold a row of pictures for each prompt; equal places have equal seeds. Of
    long rows the first eight are shown: the sheet is to be taken in at a glance."""
    rows: list[tuple[str, list[tuple[str, Sequence[Image.Image]]]]] = [("training pictures", [("", training_pictures)])]
    rows += [(p, [("before", b), ("after", a)]) for p, b, a in zip(prompts, before, after, strict=True)]
    rows = [(text, [(label, pictures[:COLUMNS]) for label, pictures in strips]) for text, strips in rows]
    columns = max(len(pictures) for _, strips in rows for _, pictures in strips)
    width = 2 * MARGIN + LABELS + columns * (CELL + GAP) - GAP
    height = 2 * MARGIN + HEADING + sum(HEADING + len(strips) * (CELL + GAP) for _, strips in rows)
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(20), ImageFont.load_default(14)
    pen.text((MARGIN, MARGIN), fitting(title, large, width - 2 * MARGIN), INK, large)
    y = MARGIN + HEADING
    for heading, strips in rows:
        pen.text((MARGIN, y + 8), fitting(heading, small, width - 2 * MARGIN), INK, small)
        y += HEADING
        for label, pictures in strips:
            pen.text((MARGIN, y + CELL // 2 - 8), label, FAINT, small)
            for column, picture in enumerate(pictures):
                sheet.paste(thumbnail(picture, CELL), (MARGIN + LABELS + column * (CELL + GAP), y))
            y += CELL + GAP
    return sheet


def thumbnail(picture: Image.Image, side: int) -> Image.Image:
    """The middle square of `picture`, `side` pixels wide."""
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    square = picture.convert("RGB").crop((left, top, left + short, top + short))
    return square.resize((side, side), Image.Resampling.LANCZOS)


def fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`text`, cut to `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
