"""Draws pictures of flat, anti-aliased parts: single shapes, random things of several parts, faces with hats.

Everything is a filled polygon in the unit circle, moved, turned, stretched and painted over what is there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from finetune_trainer.builtin.vocabulary import COLOURS, IMAGE_SIZE, PALETTE, SHAPES
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Pixels = NDArray[np.uint8]

OVERSAMPLING = 4
COLOUR_JITTER = 6


def _regular(points: int, radius: float = 1.0, phase: float = 0.0) -> list[tuple[float, float]]:
    """Corners of a regular polygon; phase 0 puts the first at the top."""
    angles = [phase + 2 * math.pi * i / points for i in range(points)]
    return [(radius * math.sin(a), -radius * math.cos(a)) for a in angles]


def _star() -> list[tuple[float, float]]:
    outer, inner = _regular(5), _regular(5, 0.42, math.pi / 5)
    return [corner for pair in zip(outer, inner, strict=True) for corner in pair]


def _ring(inner_radius: float) -> list[tuple[float, float]]:
    # One outline: round the outside, across a seam of no width, and back round the hole.
    outer, inner = _regular(48), _regular(48, inner_radius)
    return [*outer, outer[0], inner[0], *inner[:0:-1], inner[0]]


def _cross(arm: float) -> list[tuple[float, float]]:
    return [
        (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
        (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm),
    ]  # fmt: skip


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / 48 for i in range(48)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in turns
    ]


def _smile() -> list[tuple[float, float]]:
    lower = [(math.cos(a), math.sin(a)) for a in np.linspace(0, math.pi, 24)]
    upper = [(math.cos(a), 0.35 * math.sin(a)) for a in np.linspace(math.pi, 0, 24)]
    return [*lower, *upper]


OUTLINES: dict[str, NDArray[np.float64]] = {
    name: np.asarray(corners, dtype=np.float64)
    for name, corners in {
        "circle": _regular(48),
        "square": _regular(4, 1.2, math.pi / 4),
        "triangle": [(0, -1.05), (1.05, 0.85), (-1.05, 0.85)],
        "star": _star(),
        "ring": _ring(0.55),
        "cross": _cross(0.34),
        "heart": _heart(),
        "diamond": [(0, -1.15), (0.8, 0), (0, 1.15), (-0.8, 0)],
        "smile": _smile(),
        "trapezoid": [(-0.6, -1), (0.6, -1), (1, 1), (-1, 1)],
    }.items()
}
PARTS = tuple(OUTLINES)


@dataclass(frozen=True)
class Part:
    """One painted outline. Centre and size are fractions of the picture's side, the angle is in degrees."""

    outline: str
    colour: Rgb
    centre: tuple[float, float]
    size: float
    angle: float = 0.0
    stretch: float = 1.0


def render(background: Rgb, parts: Sequence[Part], side: int = IMAGE_SIZE) -> Pixels:
    """Paints the parts in order. Returns uint8 [side, side, 3]."""
    big = side * OVERSAMPLING
    canvas = Image.new("RGB", (big, big), background)
    pen = ImageDraw.Draw(canvas)
    for part in parts:
        turn = math.radians(part.angle)
        cos, sin = math.cos(turn), math.sin(turn)
        corners = OUTLINES[part.outline] * (1.0, part.stretch)
        corners = corners @ np.array([[cos, sin], [-sin, cos]]) * part.size + part.centre
        pen.polygon([(x, y) for x, y in corners * big], fill=part.colour)
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))


def jittered(colour: Rgb, rng: np.random.Generator) -> Rgb:
    """The colour a little off, so that no model learns ten exact values."""
    red, green, blue = np.clip(np.array(colour) + rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3), 0, 255)
    return int(red), int(green), int(blue)


def pick_colours(rng: np.random.Generator, count: int) -> list[str]:
    """That many different colour names (neighbours in a picture must be told apart)."""
    return [COLOURS[i] for i in rng.choice(len(COLOURS), count, replace=False)]


@dataclass(frozen=True)
class Shape:
    """What a caption can say about a picture."""

    shape: str
    colour: str
    background: str


@dataclass(frozen=True)
class Placement:
    """Where a shape may stand: its size and the middle's shift as fractions of the side, its turn in degrees."""

    sizes: tuple[float, float]
    shift: float
    turn: float


# What the VAE must show and the classifier must judge.
ANYWHERE = Placement(sizes=(0.25, 0.36), shift=0.5, turn=8)
# What is drawn for a caption: a small model learns what a word looks like sooner where it need not find it first.
MIDDLE = Placement(sizes=(0.28, 0.36), shift=0.05, turn=5)


def draw_shape(
    content: Shape, rng: np.random.Generator, placement: Placement = ANYWHERE, side: int = IMAGE_SIZE
) -> Pixels:
    """One shape, wholly in the picture. Returns uint8 [side, side, 3]."""
    size = rng.uniform(*placement.sizes)
    slack = min(placement.shift, 0.5 - size * 1.15)
    part = Part(
        outline=content.shape,
        colour=jittered(PALETTE[content.colour], rng),
        centre=(0.5 + rng.uniform(-slack, slack), 0.5 + rng.uniform(-slack, slack)),
        size=size,
        angle=rng.uniform(-placement.turn, placement.turn),
    )
    return render(jittered(PALETTE[content.background], rng), [part], side)


def random_shape(rng: np.random.Generator) -> Shape:
    """Any shape in any colour on any other colour."""
    colour, background = pick_colours(rng, 2)
    return Shape(SHAPES[rng.integers(len(SHAPES))], colour, background)


def draw_assembly(rng: np.random.Generator, side: int = IMAGE_SIZE) -> Pixels:
    """A thing of several parts, half of the time a body with small parts in and around it, in pairs or alone.

    This teaches the VAE details. Returns uint8 [side, side, 3].
    """
    background, body_colour = pick_colours(rng, 2)

    def colour_besides(other: str) -> Rgb:
        names = [name for name in COLOURS if name != other]
        return jittered(PALETTE[names[rng.integers(len(names))]], rng)

    def part(centre: tuple[float, float], size: float, besides: str) -> Part:
        outline = PARTS[rng.integers(len(PARTS))]
        stretch = float(rng.uniform(0.3, 1.0)) if rng.random() < 0.5 else 1.0
        angle = float(rng.choice([0, 0, 90, 180, rng.uniform(-180, 180)]))
        return Part(outline, colour_besides(besides), centre, size, angle, stretch)

    parts: list[Part] = []
    if rng.random() < 0.5:
        for _ in range(rng.integers(2, 8)):
            parts.append(part((rng.uniform(0, 1), rng.uniform(0, 1)), float(rng.uniform(0.04, 0.3)), background))
        return render(jittered(PALETTE[background], rng), parts, side)

    x, y, size = rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65), float(rng.uniform(0.2, 0.36))
    body = PARTS[rng.integers(len(PARTS))] if rng.random() < 0.5 else "circle"
    parts.append(Part(body, jittered(PALETTE[body_colour], rng), (x, y), size, float(rng.uniform(-20, 20))))
    for _ in range(rng.integers(1, 4)):
        dx, dy = size * rng.uniform(-0.6, 0.6), size * rng.uniform(-0.6, 0.6)
        detail = part((x + dx, y + dy), size * float(rng.uniform(0.12, 0.4)), body_colour)
        parts.append(detail)
        if rng.random() < 0.6:
            parts.append(
                Part(detail.outline, detail.colour, (x - dx, y + dy), detail.size, -detail.angle, detail.stretch)
            )
    for _ in range(rng.integers(0, 3)):
        turn = rng.uniform(0, 2 * math.pi)
        rim = (x + size * 1.05 * math.cos(turn), y + size * 1.05 * math.sin(turn))
        parts.append(part(rim, size * float(rng.uniform(0.2, 0.7)), background))
    return render(jittered(PALETTE[background], rng), parts, side)


def draw_assemblies(count: int, seed: int) -> Pixels:
    """Random things of several parts. Returns uint8 [count, 64, 64, 3]."""
    rng = np.random.default_rng([seed, 1])
    return np.stack([draw_assembly(rng) for _ in range(count)])


def draw_contents(count: int, rng: np.random.Generator) -> list[Shape]:
    """What that many random pictures show."""
    return [random_shape(rng) for _ in range(count)]


def draw_shapes(count: int, seed: int, placement: Placement = ANYWHERE) -> tuple[Pixels, list[Shape]]:
    """Random captioned shapes. Returns uint8 [count, 64, 64, 3] and what each shows."""
    rng = np.random.default_rng([seed, 2])
    contents = draw_contents(count, rng)
    return np.stack([draw_shape(content, rng, placement) for content in contents]), contents
