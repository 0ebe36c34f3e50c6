"""Each technique on builtin://tiny-shapes, one training seed: only what must hold. How well they do, and how much seeds
differ, is what `finetune compare examples/compare.yaml` measures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from finetune_api import TrainingRun
from finetune_api.methods import MethodSpec
from finetune_trainer.builtin.classifier import Classifier, load_classifier
from finetune_trainer.builtin.vocabulary import PALETTE
from finetune_trainer.cli import app
from finetune_trainer.comparison.pictures import drawn_prompts
from finetune_trainer.methods import make_methods
from finetune_trainer.methods.base import NoFiles
from finetune_trainer.publish.manifest import Manifest
from finetune_trainer.sources.builtin import open_builtin
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from typer.testing import CliRunner

FIGURE = Path(__file__).parents[2] / "examples/subjects/figure"
SUBJECT, CLASS, WORD = "a photo of a sks circle", "a circle", "<blend>"
SAMPLER = {"inferenceSteps": 15, "guidanceScale": 4}
PRIOR = {
    "classPrompt": CLASS,
    "classImages": {"count": 48, "batchSize": 16, **SAMPLER},
}
DRAWN = 24
"""Pictures for each prompt."""


@dataclass(frozen=True)
class Learned:
    """A run that is over."""

    results: Path
    manifest: Manifest

    @property
    def size(self) -> int:
        """Bytes of what it takes to load it."""
        sizes = {file.path: file.size for file in self.manifest.files}
        largest = max((p for p in self.manifest.weights), key=lambda path: self._size(path, sizes))
        return self._size(largest, sizes)

    @staticmethod
    def _size(path: str, sizes: dict[str, int]) -> int:
        return sum(size for name, size in sizes.items() if name == path or name.startswith(f"{path}/"))

    def figure(self, name: str) -> tuple[float, float]:
        """(of the base model, now) by the base model's own judge."""
        judged = self.manifest.judged
        assert judged is not None
        return judged.base[name].value, judged.figures[name].value

    def pictures(self, when: str, text: str) -> NDArray[np.uint8]:
        """[N, 64, 64, 3]; picture i has the same first noise before and after."""
        prompt = drawn_prompts(TrainingRun.model_validate(self.manifest.settings)).index(text)
        folder = self.results / "attempts" / self.manifest.attempt / "pictures" / when
        return _load([folder / f"prompt-{prompt}-seed-{seed}.png" for seed in range(DRAWN)])


@pytest.fixture(scope="module")
def learn(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Learned]:
    """Runs the trainer, each run once."""
    place = tmp_path_factory.mktemp("learned")

    @cache
    def run(name: str) -> Learned:
        folder = place / name
        pictures = blends(place / "blends") if name in ("word", "hypernetwork") else FIGURE
        spec = {
            "baseModel": {"uri": "builtin://tiny-shapes"},
            "dataset": {"uri": f"file://{pictures}", **CAPTIONS.get(name, {})},
            "method": METHODS[name],
            "training": {"batchSize": 4, **TRAININGS[name]},
            "validation": {
                "prompts": PROMPTS[name],
                "imagesPerPrompt": DRAWN,
                "inferenceSteps": 15,
                "guidanceScale": 4,
            },
            "judgement": {"imagesPerPrompt": DRAWN},
            "output": {"uri": f"file://{folder}"},
        }
        head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}}
        file = place / f"{name}.yaml"
        file.write_text(json.dumps({**head, "spec": spec}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
            result = CliRunner().invoke(app, ["run", str(file)])
        assert result.exit_code == 0, result.stderr
        return Learned(folder, Manifest.model_validate_json((folder / "manifest.json").read_bytes()))

    return run


LORA = {"prompt": SUBJECT, "targets": ["attention", "feedForward", "convolution"], "priorPreservation": PRIOR}
METHODS: dict[str, dict[str, object]] = {
    "lora": {"lora": LORA},
    "dreambooth": {"dreamBooth": {"prompt": SUBJECT, "priorPreservation": PRIOR}},
    "dreambooth-without-prior": {"dreamBooth": {"prompt": SUBJECT}},
    "word": {"textualInversion": {"tokens": [{"placeholder": WORD, "vectors": 2, "initializer": "cyan circle"}]}},
    "hypernetwork": {"hypernetwork": {"prompt": "a cyan circle"}},
}
TRAININGS: dict[str, dict[str, object]] = {
    "lora": {"steps": 250, "learningRate": 0.001},
    "dreambooth": {"steps": 150, "learningRate": 0.0001},
    "dreambooth-without-prior": {"steps": 150, "learningRate": 0.0001},
    "word": {"steps": 200, "learningRate": 0.005},
    "hypernetwork": {"steps": 150, "learningRate": 0.0003},
}
BLEND, BEFORE = f"a {WORD} on a white background", "a cyan circle on a white background"
PROMPTS = {
    **{name: [SUBJECT, CLASS] for name in ("lora", "dreambooth", "dreambooth-without-prior")},
    "word": [BLEND, BEFORE],
    "hypernetwork": [BEFORE, "a red star on a white background"],
}
CAPTIONS = {"word": {"captions": {"source": "Sidecar"}}}


def blends(folder: Path) -> Path:
    """Half-way between a square and its inscribed circle, in the colour half-way between cyan and green: no caption of
    tiny-shapes names either, and the model can draw both."""
    colour = tuple((a + b) // 2 for a, b in zip(PALETTE["cyan"], PALETTE["green"], strict=True))
    folder.mkdir(exist_ok=True)
    for index, background in enumerate(("white", "yellow", "pink", "black", "orange")):
        canvas = Image.new("RGB", (256, 256), PALETTE[background])
        radius, x, y = 78 + 4 * (index % 3), 128 + 5 * (index % 2), 128 - 4 * (index % 3)
        box = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(canvas).rounded_rectangle(box, radius=radius // 2, fill=colour)
        canvas.resize((64, 64), Image.Resampling.BOX).save(folder / f"{background}.png")
        (folder / f"{background}.txt").write_text(f"a {WORD} on a {background} background")
    return folder


@cache
def classifier() -> Classifier:
    return load_classifier(open_builtin("builtin://tiny-shapes") / "classifier")


def far_from_the_blend(pictures: NDArray[np.uint8], folder: Path) -> float:
    """Mean distance of the classifier's features to those of the training picture on the same background."""
    white = classifier().classify(_load([folder / "white.png"])).features.numpy()
    return float(np.linalg.norm(classifier().classify(pictures).features.numpy() - white, axis=1).mean())


def _load(paths: list[Path]) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


@pytest.mark.parametrize("name", ["lora", "dreambooth"])
def test_the_subject_is_learned(name: str, learn: Callable[[str], Learned]) -> None:
    before, after = learn(name).figure("fidelity")
    assert before <= 0.1
    assert after >= before + 0.5


@pytest.mark.parametrize("name", ["word", "hypernetwork"])
def test_a_blend_that_no_caption_names_is_learned(name: str, learn: Callable[[str], Learned]) -> None:
    learned = learn(name)
    folder = learned.results.parent / "blends"
    # a new word is compared with the base model's picture of the words that it started from
    base = far_from_the_blend(learned.pictures("before", BEFORE), folder)
    now = far_from_the_blend(learned.pictures("after", PROMPTS[name][0]), folder)
    assert now < 0.8 * base


def test_prior_preservation_lowers_the_leak(learn: Callable[[str], Learned]) -> None:
    """Paired: the same pictures, seed, steps and first noise."""
    _, leak = learn("dreambooth").figure("leak")
    _, without = learn("dreambooth-without-prior").figure("leak")
    assert leak < without


def test_a_word_is_smaller_than_what_acts_on_layers_and_that_than_a_model(learn: Callable[[str], Learned]) -> None:
    """Which of LoRA and hypernetwork is the smaller is a matter of settings: the LoRA that learns here has rank 16 in
    all layers of a model whose text is 128 wide, and is the larger."""
    word, lora, hypernetwork, model = (learn(name).size for name in ("word", "lora", "hypernetwork", "dreambooth"))
    assert word < 10_000 < min(lora, hypernetwork)
    assert max(lora, hypernetwork) < model


def test_sizes_for_stable_diffusion_15_at_the_defaults() -> None:
    """A word < LoRA < hypernetwork < the UNet, counted in the layers of the real model; it takes no memory."""
    with torch.device("meta"):
        unets = [UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8) for _ in range(2)]
    whole = sum(parameter.numel() for parameter in unets[0].parameters())
    trained = []
    for technique, unet in zip(("lora", "hypernetwork"), unets, strict=True):
        family = SimpleNamespace(parts={"unet": unet}, denoiser="unet", device=torch.device("meta"))
        (method,) = make_methods(MethodSpec.model_validate({technique: {"prompt": SUBJECT}}), 0)
        groups = method.install(family, NoFiles())
        trained.append(sum(value.numel() for group in groups for value in group.parameters.values()))
    sizes = [768, *trained, whole]
    assert sizes == sorted(sizes)
    # rank 16 in 128 layers; and networks for keys and values, 768 to 1536 to 768 with biases
    assert trained == [3_188_736, 2 * (2 * 768 * 1536 + 768 + 1536)]
    assert whole == 859_520_964
