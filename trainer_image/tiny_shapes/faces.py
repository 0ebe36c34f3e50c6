"""Faces with hats: what the VAE is judged on and never trained on, and the example subject, which is one of them."""

from dataclasses import dataclass, replace

import numpy as np
from finetune_trainer.builtin.vocabulary import COLOURS, IMAGE_SIZE, PALETTE

from .drawing import Part, Pixels, Rgb, jittered, pick_colours, render


@dataclass(frozen=True)
class Face:
    """The colours (names in the palette) of a face; where it stands is drawn anew for each picture."""

    skin: str
    eyes: str
    mouth: str
    hat: str
    background: str


# A round yellow face with black eyes, a red mouth and a green hat. Its class word is "circle".
SUBJECT_FACE = Face(skin="yellow", eyes="black", mouth="red", hat="green", background="white")
SUBJECT_BACKGROUNDS = ("cyan", "blue", "purple", "pink", "white")


def draw_face(face: Face, rng: np.random.Generator, side: int = IMAGE_SIZE, spread: float = 1.0) -> Pixels:
    """The face at a random place, size and slight tilt; spread 0 is dead centre. Returns uint8 [side, side, 3]."""
    size = 0.27 + spread * rng.uniform(-0.03, 0.03)
    x = 0.5 + spread * rng.uniform(-0.1, 0.1)
    y = 0.57 + spread * rng.uniform(-0.05, 0.05)
    tilt = spread * rng.uniform(-8, 8)
    turn = np.radians(tilt)

    def at(right: float, down: float) -> tuple[float, float]:
        return (
            float(x + size * (right * np.cos(turn) - down * np.sin(turn))),
            float(y + size * (right * np.sin(turn) + down * np.cos(turn))),
        )

    def paint(name: str) -> Rgb:
        return jittered(PALETTE[name], rng)

    eyes = paint(face.eyes)
    hat = paint(face.hat)
    parts = [
        Part("circle", paint(face.skin), at(0, 0), size, tilt),
        Part("circle", eyes, at(-0.36, -0.12), size * 0.16, tilt),
        Part("circle", eyes, at(0.36, -0.12), size * 0.16, tilt),
        Part("smile", paint(face.mouth), at(0, 0.3), size * 0.48, tilt, 0.8),
        Part("square", hat, at(0, -0.68), size * 0.95, tilt, 0.16),
        Part("trapezoid", hat, at(0, -1.15), size * 0.55, tilt, 0.85),
    ]
    return render(paint(face.background), parts, side)


def random_face(rng: np.random.Generator) -> Face:
    """A face in any colours; those that touch differ."""
    skin, eyes, mouth, hat, background = pick_colours(rng, 5)
    return Face(skin, eyes, mouth, hat, background)


def draw_faces(count: int, seed: int) -> Pixels:
    """Faces with hats in random colours. Returns uint8 [count, 64, 64, 3]."""
    rng = np.random.default_rng([seed, 3])
    return np.stack([draw_face(random_face(rng), rng) for _ in range(count)])


def draw_subject(rng: np.random.Generator, background: str | None = None, side: int = IMAGE_SIZE) -> Pixels:
    """The example subject, on any colour that is not its own unless one is named. Returns uint8 [side, side, 3]."""
    if background is None:
        allowed = [name for name in COLOURS if name not in (SUBJECT_FACE.skin, SUBJECT_FACE.hat)]
        background = allowed[rng.integers(len(allowed))]
    return draw_face(replace(SUBJECT_FACE, background=background), rng, side)


def draw_subject_pictures(side: int, seed: int) -> list[Pixels]:
    """The example's pictures, one for each of SUBJECT_BACKGROUNDS. Each is uint8 [side, side, 3]."""
    rng = np.random.default_rng([seed, 4])
    return [draw_subject(rng, background, side) for background in SUBJECT_BACKGROUNDS]
