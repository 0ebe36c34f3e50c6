"""Captions of the pictures' own, with shuffled tags and left out at times, beside the reference: what is drawn for a
sample is what it is trained with, whether the text encoder's output is kept or made anew in each step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from finetune_trainer.data.draw import Draw
from support import method_reference as plain
from support.training import PROMPT, make_pictures, make_run, train_once

STEPS, BATCH, RATE, TEXT_RATE, SHARE = 6, 2, 0.001, 0.0003, 0.3
TAGS = {"0": ["sks dog", "red", "big"], "1": ["sks dog", "hat", "old", "wet"], "2": ["one"]}


@dataclass
class WithTags(plain.Reference):
    """Remembers which captions it was asked for."""

    said: list[str] = field(default_factory=list)

    def caption(self, file: Path, drawn: Draw) -> plain.Tensor:
        first, *others = TAGS[file.stem]
        order = drawn.tag_order(len(others))
        caption = "" if drawn.drops_caption(SHARE) else ", ".join([first, *(others[index] for index in order)])
        self.said.append(caption)
        return self.tokens(caption)


def whole(reference: plain.Reference) -> None:
    plain.whole(reference, TEXT_RATE)


def denoiser(reference: plain.Reference) -> None:
    plain.whole(reference, TEXT_RATE)
    reference.encoders[0].requires_grad_(False)
    reference.groups.pop()


@pytest.mark.parametrize(("build", "train_text"), [(denoiser, False), (whole, True)])
def test_dropout_and_shuffled_tags_are_those_of_the_reference(
    build: Callable[[plain.Reference], None], train_text: bool, tiny_sd: Path, tmp_path: Path
) -> None:
    pictures = make_pictures(tmp_path / "pictures")
    for name, tags in TAGS.items():
        (pictures / f"{name}.txt").write_text(", ".join(tags))
    method = {"prompt": PROMPT, "trainTextEncoder": train_text}
    run = make_run(
        "dreamBooth",
        method={"dreamBooth": method | ({"textEncoderLearningRate": TEXT_RATE} if train_text else {})},
        training={"steps": STEPS, "batchSize": BATCH, "learningRate": RATE},
        dataset={"captions": {"source": "Sidecar", "shuffleTags": True, "dropout": SHARE}},
    )
    _, outcome = train_once(run, tiny_sd, pictures, tmp_path)
    reference = WithTags(tiny_sd)
    build(reference)
    expected = plain.losses_of(reference, pictures, STEPS, BATCH, RATE)
    np.testing.assert_allclose(outcome.losses, expected, rtol=2e-5)
    assert "" in reference.said
    assert set(reference.said) - {"", *(", ".join(tags) for tags in TAGS.values())}, "some are shuffled"
