"""The committed base model is what docs/tiny-shapes.md says: its files, its gates, and that it draws captions."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from finetune_trainer.builtin.classifier import Classifier, load_classifier
from finetune_trainer.builtin.vocabulary import CLASSES, RARE_WORDS, SUBJECT
from safetensors import safe_open

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "trainer_image/finetune_trainer/builtin/tiny-shapes"

# The script that makes the model is no part of the installed package.
sys.path.append(str(ROOT / "trainer_image"))

from tiny_shapes import faces, gates  # noqa: E402 (the path is set just above)
from tiny_shapes.captions import CAPTION_WORDS, WORDS, all_contents, random_caption  # noqa: E402 (as above)
from tiny_shapes.diffusion import load_pipeline  # noqa: E402 (as above)
from tiny_shapes.vae import psnr, round_trip  # noqa: E402 (as above)


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    return load_pipeline(MODEL)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return load_classifier(MODEL / "classifier")


def test_the_model_is_small_half_precision_and_complete() -> None:
    assert gates.megabytes(MODEL) < gates.MAX_MEGABYTES
    weights = {path.parent.name: path for path in MODEL.rglob("*.safetensors")}
    assert set(weights) == {"vae", "unet", "text_encoder", "classifier"}
    for path in weights.values():
        with safe_open(path, "pt") as file:
            kinds = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 (not a dict)
        assert kinds <= {torch.float16, torch.int64}, path


def test_the_text_encoder_has_the_keys_that_other_tools_expect() -> None:
    with safe_open(MODEL / "text_encoder/model.safetensors", "pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118 (not a dict)


def test_every_known_word_is_one_token_and_no_caption_uses_a_rare_one(pipe: StableDiffusionPipeline) -> None:
    assert [word for word in WORDS if len(pipe.tokenizer.tokenize(word)) != 1] == []
    assert "sks" in RARE_WORDS and len(RARE_WORDS) == 9
    rng = np.random.default_rng(0)
    used = {word for content in all_contents() for word in random_caption(content, rng).split()}
    assert used == set(CAPTION_WORDS)
    assert not used & set(RARE_WORDS)


def test_unknown_words_fall_back_to_bytes(pipe: StableDiffusionPipeline) -> None:
    ids = pipe.tokenizer("a naïve 圆").input_ids
    assert pipe.tokenizer.decode(ids, skip_special_tokens=True) == "a naïve 圆"


def test_the_vae_shows_faces_it_never_saw(pipe: StableDiffusionPipeline) -> None:
    drawn, who = gates.unseen_faces(48, seed=11)
    seen = round_trip(pipe.vae, drawn)
    assert psnr(drawn, seen) >= gates.MIN_PSNR
    assert gates.visible_parts(drawn, seen, who) >= gates.MIN_VISIBLE


def test_it_draws_the_shape_and_the_colour_that_a_caption_names(
    pipe: StableDiffusionPipeline, classifier: Classifier
) -> None:
    scores = gates.caption_scores(pipe, classifier, gates.pick_contents(64, seed=12), seed=12, steps=20)
    # It gets all of 512 right (gates.json), so the gate's own limit leaves room for other hardware's rounding.
    assert scores["shape and colour"] >= gates.MIN_RIGHT, scores
    assert scores["background"] >= gates.MIN_RIGHT, scores


def test_the_classifier_tells_the_subject_from_a_circle_and_from_other_faces(classifier: Classifier) -> None:
    rng = np.random.default_rng(13)
    subjects = np.stack([faces.draw_subject(rng) for _ in range(50)])
    assert classifier.classify(subjects).class_names().count(SUBJECT) >= 48
    others = classifier.classify(faces.draw_faces(50, seed=13))
    assert others.class_names().count(SUBJECT) <= 2
    assert others.classes.shape == (50, len(CLASSES))


def test_the_classifier_takes_tensors_and_other_sides_and_refuses_the_rest(classifier: Classifier) -> None:
    pictures = np.stack(faces.draw_subject_pictures(128, seed=0))
    as_bytes = classifier.classify(pictures)
    as_floats = classifier.classify(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)
    torch.testing.assert_close(as_bytes.features, as_floats.features)
    with pytest.raises(ValueError, match=r"give uint8 \[N, H, W, 3\]"):
        classifier.classify(np.zeros((1, 64, 64, 3), dtype=np.float32))


def test_the_recorded_gates_are_the_scripts_and_say_truly_which_are_met() -> None:
    record = json.loads((MODEL / gates.GATES_FILE).read_text())
    limits = {gate["name"]: gate["limit"] for gate in record["gates"]}
    assert sorted(limits.values()) == sorted(
        [gates.MIN_PSNR, gates.MIN_VISIBLE, gates.MIN_RIGHT, 1.0, 9, gates.MAX_MEGABYTES, gates.MAX_STEP_SECONDS]
    )
    for gate in record["gates"]:
        enough = gate["figure"] >= gate["limit"] if gate["at_least"] else gate["figure"] <= gate["limit"]
        assert gate["met"] == enough, gate
    documented = (ROOT / "docs/tiny-shapes.md").read_text()
    for gate in record["gates"]:
        assert gate["met"] or f"{gate['name']}: not met" in documented
