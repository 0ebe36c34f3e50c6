"""Encoders from a folder: what they see, and what cannot be read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_api.methods import MethodSpec
from finetune_trainer.builtin.vocabulary import PALETTE
from finetune_trainer.errors import DataError
from finetune_trainer.evaluation.encoders import border_colour, load_encoder
from finetune_trainer.evaluation.judge import Judge
from finetune_trainer.evaluation.preprocessing import Preprocessing, read_preprocessing
from finetune_trainer.evaluation.wording import wording_of
from finetune_trainer.sources.builtin import open_builtin
from PIL import Image
from safetensors.torch import load_file, save_file
from support.tiny_encoders import PREPROCESSOR, build_tiny_clip, build_tiny_dino
from transformers import AutoModel, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

CPU = torch.device("cpu")
FIGURE = Path(__file__).parents[2] / "examples/subjects/figure"


def noise(count: int, size: tuple[int, int] = (40, 30)) -> list[Image.Image]:
    numbers = np.random.default_rng(3)
    return [Image.fromarray(numbers.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_dino(tmp_path_factory.mktemp("dino"))


def test_pictures_become_what_transformers_own_processor_makes_of_them() -> None:
    reference = CLIPImageProcessorPil(**{**PREPROCESSOR, "resample": 3})
    for size in ((40, 30), (30, 40), (17, 64), (12, 16)):
        (picture,) = noise(1, size)
        ours = preprocessing(PREPROCESSOR)(picture)
        theirs = np.asarray(reference(picture, return_tensors="np")["pixel_values"][0])
        assert ours.shape == theirs.shape == (3, 16, 16)
        assert np.abs(ours - theirs).max() < 1e-5, size


def preprocessing(config: dict) -> Preprocessing:
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "preprocessor_config.json"
        path.write_text(json.dumps(config))
        return read_preprocessing(path)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({"size": 32, "crop_size": 16, "do_center_crop": True}, (3, 16, 16)),
        ({"size": {"height": 12, "width": 20}}, (3, 12, 20)),
        ({"size": {"shortest_edge": 18}, "do_center_crop": False}, (3, 18, 18)),
        ({}, (3, 224, 224)),
    ],
)
def test_sizes_in_all_forms_in_use(config: dict, shape: tuple[int, ...]) -> None:
    assert preprocessing(config)(noise(1)[0]).shape == shape


def test_dinos_features_are_its_class_token(dino: Path, tmp_path: Path) -> None:
    for folder in (dino, build_tiny_dino(tmp_path / "vit", "vit")):
        pictures = noise(5)
        seen = load_encoder(folder, CPU).see(pictures)
        assert (seen.features.shape, seen.verdicts) == ((5, 16), None)
        assert np.linalg.norm(seen.features, axis=1) == pytest.approx(np.ones(5), abs=1e-6)
        pixels = torch.from_numpy(np.stack([preprocessing(PREPROCESSOR)(picture) for picture in pictures]))
        with torch.no_grad():
            token = AutoModel.from_pretrained(folder)(pixels).last_hidden_state[:, 0]
        assert seen.features == pytest.approx(torch.nn.functional.normalize(token).numpy(), abs=1e-5)


def test_clip_sees_and_reads_in_one_space(clip: Path) -> None:
    encoder, pictures = load_encoder(clip, CPU), noise(3)
    model, tokenizer = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    pixels = torch.from_numpy(np.stack([preprocessing(PREPROCESSOR)(picture) for picture in pictures]))
    tokens = tokenizer(["a dog", "b"], padding=True, return_tensors="pt")
    with torch.no_grad():
        reference = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
    assert encoder.see(pictures).features == pytest.approx(reference.image_embeds.numpy(), abs=1e-5)
    assert encoder.read(["a dog", "b"]) == pytest.approx(reference.text_embeds.numpy(), abs=1e-5)
    assert encoder.read(["word " * 200]).shape == (1, 12), "longer texts are cut"


@pytest.mark.parametrize(("prompt", "told"), [("a sks dog", True), ("sks", False)])
def test_a_prompt_that_says_nothing_but_the_rare_word_has_no_fidelity_to_it(
    clip: Path, prompt: str, told: bool
) -> None:
    wording = wording_of(MethodSpec.model_validate({"lora": {"prompt": prompt}}))
    judge = Judge(load_encoder(clip, CPU), wording, [prompt], [noise(2)])
    look = judge.look([[(0, picture)] for picture in noise(3)], keep=2)
    assert [len(row) for row in look.rows] == [2]
    assert ("promptFidelity" in judge.figures(look, look)) is told


def test_a_picture_looks_the_same_in_any_batch(dino: Path) -> None:
    encoder, pictures = load_encoder(dino, CPU), noise(40)
    whole = encoder.see(pictures).features
    assert encoder.see(pictures[35:36]).features == pytest.approx(whole[35:36], abs=1e-6)


def test_tiny_shapes_judges_itself() -> None:
    encoder = load_encoder(open_builtin("builtin://tiny-shapes"), CPU)
    paths = sorted(FIGURE.glob("*.png"))
    seen = encoder.see([Image.open(path) for path in paths])
    assert seen.features.shape == (5, 128)
    assert seen.verdicts is not None
    assert seen.verdicts.classes == ("subject",) * 5
    assert seen.verdicts.backgrounds == tuple(path.stem for path in paths), "each is named after its background"
    assert encoder.read(["a circle"]) is None


def test_the_border_says_the_background() -> None:
    for name, colour in PALETTE.items():
        picture = np.full((64, 64, 3), colour, np.uint8)
        picture[20:, 10:50] = (1, 2, 3)  # something large that touches an edge
        assert border_colour(picture) == name


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json cannot be read"),
        (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "model_type is bert; encoders are clip"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "no .safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 50), "the model cannot be read"),
        (lambda f: lose_a_tensor(f / "model.safetensors"), "1 tensors are missing"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json cannot be read"),
        (
            lambda f: (f / "preprocessor_config.json").write_text('{"size": {"shortest_edge": 100000}}'),
            "size 100000 is not one",
        ),
        (
            lambda f: (f / "preprocessor_config.json").write_text('{"image_std": [0, 1, 1]}'),
            "image_std is",
        ),
    ],
)
def test_what_cannot_be_read_is_named(spoil: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    folder = build_tiny_dino(tmp_path / "encoder")
    spoil(folder)
    with pytest.raises(DataError, match=rf"^spec.judgement.encoderUri: .*{says}"):
        load_encoder(folder, CPU)


def lose_a_tensor(path: Path) -> None:
    tensors = load_file(path)
    del tensors["layernorm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
