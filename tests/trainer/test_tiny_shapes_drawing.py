"""The example subject is drawn anew byte for byte, and the drawings are what their captions say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from finetune_trainer.builtin.vocabulary import PALETTE
from PIL import Image

ROOT = Path(__file__).parents[2]
SUBJECT = ROOT / "examples/subjects/figure"

# The script that makes the model is no part of the installed package.
sys.path.append(str(ROOT / "trainer_image"))

from tiny_shapes.captions import full_caption  # noqa: E402 (the path is set just above)
from tiny_shapes.drawing import COLOUR_JITTER, PARTS, draw_assemblies, draw_shape, draw_shapes  # noqa: E402 (as above)
from tiny_shapes.faces import draw_faces  # noqa: E402 (as above)
from tiny_shapes.tokenizer import learn_merges  # noqa: E402 (as above)


def test_the_example_subject_is_what_the_script_draws(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "tiny_shapes", "draw-subject", "--out", str(tmp_path)],
        cwd=ROOT / "trainer_image",
        check=True,
        capture_output=True,
    )
    drawn = {path.name: np.asarray(Image.open(path)) for path in tmp_path.glob("*.png")}
    committed = {path.name: np.asarray(Image.open(path)) for path in SUBJECT.glob("*.png")}
    assert len(committed) == 5
    assert drawn.keys() == committed.keys()
    for name, pixels in committed.items():
        np.testing.assert_array_equal(drawn[name], pixels, err_msg=name)


def test_a_drawing_depends_on_its_seed_alone() -> None:
    for draw in (draw_assemblies, draw_faces, lambda count, seed: draw_shapes(count, seed)[0]):
        np.testing.assert_array_equal(draw(4, 1), draw(4, 1))
        assert (draw(4, 1) != draw(4, 2)).any()


def test_a_shape_has_the_colours_of_its_caption() -> None:
    pixels, contents = draw_shapes(64, seed=3)
    for picture, content in zip(pixels, contents, strict=True):
        corner = np.abs(picture[0, 0].astype(int) - PALETTE[content.background]).max()
        assert corner <= COLOUR_JITTER, full_caption(content)
        distance = np.abs(picture.astype(int) - PALETTE[content.colour]).max(axis=2)
        assert (distance <= COLOUR_JITTER).mean() > 0.05, full_caption(content)


def test_a_bigger_picture_shows_the_same_drawing() -> None:
    _, (content,) = draw_shapes(1, seed=4)
    small = draw_shape(content, np.random.default_rng(5), side=64)
    large = draw_shape(content, np.random.default_rng(5), side=128)
    shrunk = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX))
    assert np.abs(shrunk.astype(int) - small).mean() < 1.0


def test_merges_make_each_word_one_token_even_where_words_share_letters() -> None:
    merges = learn_merges(("ring", "string", "ringing"))
    assert {"ring</w>", "string</w>", "ringing</w>"} <= {"".join(pair) for pair in merges}


def test_all_shapes_can_be_parts_of_an_assembly() -> None:
    assert {"circle", "ring", "smile", "trapezoid"} <= set(PARTS)
