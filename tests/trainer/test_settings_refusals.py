"""`finetune run` with settings and starting files that fit the run's file but not the model: 78 or 65 with the field,
the value and the remedy, before a single picture is drawn; and a training that diverges."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from finetune_trainer.cli import app
from finetune_trainer.families.latent_diffusion import LatentDiffusion
from safetensors.torch import save_file
from support.training import PRIOR, make_pictures
from typer.testing import CliRunner

# class pictures would be drawn first of all
LORA = {"prompt": "sks dog", "rank": 4, "priorPreservation": PRIOR}
TOY = {"placeholder": "<toy>"}
DISK: dict[str, object] = {"kind": "DeepSpeed", "zeroStage": 3, "offloadOptimizer": "Nvme", "nvmePath": "/fast"}


def nothing(folder: Path) -> None:
    """The files are well; the settings are not."""


def embedding(folder: Path) -> None:
    save_file({"<toy>": torch.ones(1, 768)}, folder / "start.safetensors")


def adapter(folder: Path) -> None:
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    matrices = {f"{layer}.lora_A.weight": torch.ones(8, 32), f"{layer}.lora_B.weight": torch.ones(32, 8)}
    save_file(matrices, folder / "start.safetensors")


def captions(folder: Path) -> None:
    """The second word stands in none of them: "<toys>" is another."""
    for path in folder.glob("pictures/*.png"):
        path.with_suffix(".txt").write_text("a <toy> and <hats>")


# method; other sections; what lies in the folder; exit code; words of the message
REFUSED: list[tuple[dict[str, object], dict[str, dict[str, object]], Callable[[Path], None], int, tuple[str, ...]]] = [
    (
        {"lora": LORA | {"rank": 33}},
        {},
        nothing,
        78,
        ("method.lora.rank is 33, and unet.", "is a matrix of 32 × ", "which has no higher rank than", "use at most"),
    ),
    (
        {"lora": LORA | {"rank": 32, "trainTextEncoder": True}},
        {},
        nothing,
        78,
        ("method.lora.rank is 32, and unet.", "is a matrix of 32 × 24", "than 24; use at most that"),
    ),
    (
        {"lora": LORA | {"continueFrom": "file://./start.safetensors"}},
        {},
        adapter,
        65,
        ("method.lora.continueFrom (start.safetensors) has nothing for", "of the unet; set method.lora.targets to"),
    ),
    (
        {"textualInversion": {"tokens": [TOY | {"initializer": "dog"}]}},
        {},
        nothing,
        78,
        ("method.textualInversion.tokens[0].initializer has 'dog', which is no token", "use common words"),
    ),
    (
        {"lora": LORA | {"prompt": "a <toy>", "tokens": [TOY | {"initializer": "d o", "vectors": 1}]}},
        {},
        nothing,
        78,
        ("method.lora.tokens[0].initializer has 2 words, and vectors is 1; set vectors: 2",),
    ),
    (
        {"textualInversion": {"tokens": [TOY | {"initialEmbeddingUri": "file://./start.safetensors"}]}},
        {},
        embedding,
        65,
        ("tokens[0].initialEmbeddingUri: start.safetensors has vectors 768 wide", "text_encoder are 24 wide; give an"),
    ),
    (
        {"lora": LORA | {"tokens": [TOY]}},
        {},
        nothing,
        78,
        ("method.lora.tokens[0].placeholder is <toy>, which does not stand in the prompt (sks dog)", "put it there"),
    ),
    (
        {"textualInversion": {"tokens": [TOY, {"placeholder": "<hat>"}]}},
        {"dataset": {"captions": {"source": "Sidecar"}}},
        captions,
        65,
        ("dataset.captions: no caption has <hat>, and so nothing", "write the word into the captions"),
    ),
    (
        {"hypernetwork": {"prompt": "sks dog", "sizes": [24, 768]}},
        {},
        nothing,
        78,
        ("method.hypernetwork.sizes has 768, and no attention", "there are 24, 32"),
    ),
    (
        {"hypernetwork": {"prompt": "sks dog", "layerStructure": [1, 0.01, 1]}},
        {},
        nothing,
        78,
        ("method.hypernetwork.layerStructure has 0.01", "a width of 24; use at least 0.0417"),
    ),
    (
        {"dreamBooth": {"prompt": "sks dog", "priorPreservation": PRIOR}},
        {"dataset": {"resolution": 64, "buckets": {"minResolution": 512, "maxResolution": 1024}}},
        nothing,
        78,
        ("dataset.buckets: no picture with sides from 512 to 1024", "lower minResolution or raise resolution"),
    ),
    (
        {"lora": LORA},
        {"training": {"steps": None, "epochs": 4, "scheduler": {"warmupSteps": 12}}},
        nothing,
        78,
        ("training.scheduler.warmupSteps is 12, but the whole training has 12 steps", "use fewer warm-up steps"),
    ),
    (
        {"lora": LORA},
        {"training": {"steps": 4, "learningRate": 0.001, "optimizer": {"name": "Prodigy"}}},
        nothing,
        78,
        ("training.learningRate is 0.001", "the optimizer Prodigy multiplies it", "use 1, or remove the field"),
    ),
    (
        {"lora": LORA | {"trainTextEncoder": True, "textEncoderLearningRate": 0.5}},
        {"training": {"steps": 4, "optimizer": {"name": "Prodigy"}}},
        nothing,
        78,
        ("textEncoderLearningRate is 0.5, but the optimizer Prodigy finds one rate", "remove the field"),
    ),
    (
        {"lora": LORA},
        {"training": {"steps": 4, "precision": "fp16"}, "engine": {"kind": "DeepSpeed"}},
        nothing,
        78,
        ("training.precision is fp16, which DeepSpeed does not support on a CPU; use bf16 or fp32",),
    ),
    (
        {"lora": LORA},
        {"training": {"steps": 4, "ema": True}, "engine": DISK},
        nothing,
        78,
        ("engine.offloadOptimizer is Nvme, and training.ema keeps its average in memory", "or use Cpu"),
    ),
]


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Each call that draws, as it is made."""
    calls: list[object] = []
    draw = LatentDiffusion.draw

    def counted(self: LatentDiffusion, *given: object) -> object:
        calls.append(given)
        return draw(self, *given)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(LatentDiffusion, "draw", counted)
    return calls


def run(method: Mapping[str, object], sections: Mapping[str, Mapping[str, object]], model: Path) -> tuple[int, str]:
    """Exit code, and what was said, of a job in the working folder with pictures/."""
    make_pictures(Path("pictures"))
    training = {"steps": 4} | dict(sections.get("training", {}))
    spec = {
        "baseModel": {"uri": f"file://{model}"},
        "method": method,
        "dataset": {"uri": "file://./pictures", **sections.get("dataset", {})},
        "training": {key: value for key, value in training.items() if value is not None},
        "validation": {"prompts": ["a dog"], "imagesPerPrompt": 1, "inferenceSteps": 1},
        "engine": dict(sections.get("engine", {})),
        "output": {"uri": "file://./results"},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "dog"}}
    Path("job.yaml").write_text(json.dumps({**head, "spec": spec}))
    result = CliRunner().invoke(app, ["run", "job.yaml"])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(("method", "sections", "prepare", "code", "words"), REFUSED)
def test_refused_before_anything_is_drawn(
    method: dict[str, object],
    sections: dict[str, dict[str, object]],
    prepare: Callable[[Path], None],
    code: int,
    words: tuple[str, ...],
    tiny_sd: Path,
    folder: Path,
    draws: list[object],
) -> None:
    make_pictures(folder / "pictures")
    prepare(folder)
    ended, said = run(method, sections, tiny_sd)
    assert ended == code, said
    assert [word for word in words if word not in said] == [], said
    assert "Traceback" not in said
    assert draws == []


def test_a_training_that_diverges_says_where_and_what_to_change(tiny_sd: Path, draws: list[object]) -> None:
    """Seven linear layers, each weight moved by about 1 in each step."""
    method = {"hypernetwork": {"prompt": "sks dog", "activation": "Linear", "layerStructure": [1, *[16] * 6, 1]}}
    ended, said = run(method, {"training": {"steps": 8, "learningRate": 1.0}}, tiny_sd)
    assert ended == 78, said
    assert "of 8: the loss is" in said
    assert "the training diverged, and would again; use a smaller training.learningRate" in said
    assert "Traceback" not in said
    assert len(draws) == 1, "the base model's picture; none of weights that are spoilt"
