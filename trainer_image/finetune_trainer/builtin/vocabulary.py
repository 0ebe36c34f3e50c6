"""The words that tiny-shapes knows, in one place: the drawing, the captions, the tokenizer and the classifier agree."""

from typing import Final

SHAPES: Final = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")

PALETTE: Final[dict[str, tuple[int, int, int]]] = {
    "red": (222, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (250, 222, 40),
    "green": (40, 160, 60),
    "cyan": (60, 205, 215),
    "blue": (40, 70, 210),
    "purple": (130, 50, 170),
    "pink": (250, 150, 190),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
COLOURS: Final = tuple(PALETTE)

# The classifier's first head: a shape, the example subject, or nothing that tiny-shapes draws.
SUBJECT: Final = "subject"
NONE: Final = "none"
CLASSES: Final = (*SHAPES, SUBJECT, NONE)

# Words that captions use beside shapes and colours.
GLUE_WORDS: Final = ("a", "photo", "of", "on", "background")

# Words that stand for a new subject. Each is one token, and no caption uses any of them.
RARE_WORDS: Final = ("sks", "ohwx", "zwx", "qlb", "vrk", "mjx", "pfyt", "gzk", "wqd")

IMAGE_SIZE: Final = 64
