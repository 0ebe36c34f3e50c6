"""LoRA files do to the weights, in the programs that read them, what the training's own layers do."""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from finetune_trainer.exports.diffusers_lora import diffusers_metadata, diffusers_tensors
from finetune_trainer.exports.kohya import kohya_metadata, kohya_tensors
from finetune_trainer.exports.plain_parts import plain_parts
from finetune_trainer.exports.readers import read_adapter
from finetune_trainer.exports.tensors import plain_all, write_tensors
from finetune_trainer.families import Family, load_family
from finetune_trainer.methods.base import AdapterWeights
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from support.adapted import ATTENTION, CONVOLUTION, FEED_FORWARD, adapt
from support.consumers import comfy_lora, webui_lora
from support.tiny_sd import build_tiny_sd
from support.tiny_sdxl import build_tiny_sdxl
from torch import Tensor

EVERYTHING = ATTENTION + FEED_FORWARD + CONVOLUTION
SETTINGS = {
    "alpha as rank": {},
    "alpha below rank": {"alpha": 1.0},
    "rank-stabilised": {"alpha": 2.0, "use_rslora": True},
    "DoRA": {"alpha": 3.0, "use_dora": True},
}
WITHOUT_DORA = [name for name in SETTINGS if name != "DoRA"]


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of each family."""
    folder = tmp_path_factory.mktemp(request.param)
    return (build_tiny_sdxl if request.param == "sdxl" else build_tiny_sd)(folder)


@dataclass(frozen=True)
class Adapted:
    """A family with live layers, and the files written of them. No test changes it."""

    family: Family
    weights: AdapterWeights
    files: dict[str, Path]
    live: dict[tuple[str, str], Tensor]


@pytest.fixture(scope="module", params=SETTINGS)
def adapted(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Adapted:
    """Every kind of layer, in all networks."""
    family = load_family(model, torch.device("cpu"))
    weights = adapt(family, EVERYTHING, text=True, **SETTINGS[request.param])
    return Adapted(
        family, weights, written(family, weights, tmp_path_factory.mktemp("files")), live_weights(family, weights)
    )


def written(family: Family, weights: AdapterWeights, folder: Path) -> dict[str, Path]:
    files = {naming: folder / f"{naming}.safetensors" for naming in ("diffusers", "kohya")}
    write_tensors(
        files["diffusers"], plain_all(diffusers_tensors(family, weights), "fp32"), diffusers_metadata(weights)
    )
    write_tensors(
        files["kohya"], plain_all(kohya_tensors(family, weights), "fp32"), kohya_metadata(family, weights, "tiny")
    )
    return files


def live_weights(family: Family, weights: AdapterWeights) -> dict[tuple[str, str], Tensor]:
    """What PEFT's own layers, which the training ran, make of each weight they lie on."""
    found = {}
    for part in weights.tensors:
        for name, module in family.parts[part].named_modules():
            if isinstance(module, LoraLayer):
                merged = copy.deepcopy(module)
                merged.merge()
                found[part, name] = merged.base_layer.weight
    return found


def assert_same(given: dict[tuple[str, str], Tensor], expected: dict[tuple[str, str], Tensor]) -> None:
    assert given.keys() == expected.keys()
    for place, weight in expected.items():
        torch.testing.assert_close(given[place], weight, rtol=1e-5, atol=1e-6)


def test_diffusers_loads_its_own_naming(adapted: Adapted, model: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(model, local_files_only=True)
    pipeline.load_lora_weights(adapted.files["diffusers"].parent, weight_name=adapted.files["diffusers"].name)
    assert_same(loaded_weights(pipeline, adapted.weights), adapted.live)
    for (part, name), weight in adapted.live.items():
        base = adapted.family.parts[part].get_submodule(name).base_layer.weight
        assert (weight - base).abs().max() > 1e-2, "a test in which nothing is added proves nothing"


@pytest.mark.parametrize("adapted", WITHOUT_DORA, indirect=True)
def test_diffusers_loads_kohyas_naming(adapted: Adapted, model: Path) -> None:
    """It leaves dora_scale out, and says so."""
    pipeline = DiffusionPipeline.from_pretrained(model, local_files_only=True)
    pipeline.load_lora_weights(adapted.files["kohya"].parent, weight_name=adapted.files["kohya"].name)
    assert_same(loaded_weights(pipeline, adapted.weights), adapted.live)


def test_comfyui_finds_every_layer(adapted: Adapted) -> None:
    assert_same(comfy_lora(load_file(adapted.files["kohya"]), adapted.family), adapted.live)


@pytest.mark.parametrize("adapted", WITHOUT_DORA, indirect=True)
def test_automatic1111_finds_every_layer(adapted: Adapted) -> None:
    """It takes dora_scale for one number for each input, which no other program does."""
    assert_same(webui_lora(load_file(adapted.files["kohya"]), adapted.family), adapted.live)


def test_folded_in_it_is_what_the_live_layers_are(adapted: Adapted) -> None:
    folded = plain_parts(adapted.family, adapted.weights, "fp32")
    assert_same({(part, name): folded[part].get_submodule(name).weight for part, name in adapted.live}, adapted.live)
    for part in folded.values():
        assert not [key for key in part.state_dict() if "lora" in key or "base_layer" in key]


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
def test_read_again_it_is_the_same_adapter(adapted: Adapted, naming: str) -> None:
    again = read_adapter(adapted.files[naming], adapted.family)
    assert again.tensors.keys() == adapted.weights.tensors.keys()
    for part, tensors in adapted.weights.tensors.items():
        assert again.tensors[part].keys() == tensors.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(again.tensors[part][key], tensor.detach(), rtol=1e-5, atol=1e-6)
    folded = plain_parts(adapted.family, again, "fp32")
    assert_same({(part, name): folded[part].get_submodule(name).weight for part, name in adapted.live}, adapted.live)


def test_the_same_adapter_gives_the_same_bytes(adapted: Adapted, tmp_path: Path) -> None:
    for naming, path in written(adapted.family, adapted.weights, tmp_path).items():
        assert path.read_bytes() == adapted.files[naming].read_bytes()


def test_a_layer_that_web_uis_would_pass_over_is_refused(adapted: Adapted) -> None:
    key = "text_model.embeddings.position_embedding.lora_A.weight"
    tensors = {"text_encoder": {key: torch.zeros(4, 24), key.replace("_A", "_B"): torch.zeros(24, 4)}}
    strange = AdapterWeights(tensors, {"text_encoder": adapted.weights.config["unet"]})
    with pytest.raises(ValueError, match=r"position_embedding is a layer that web UIs pass over"):
        kohya_tensors(adapted.family, strange)


def loaded_weights(pipeline: DiffusionPipeline, weights: AdapterWeights) -> dict[tuple[str, str], Tensor]:
    found = {}
    for part in weights.tensors:
        for name, module in getattr(pipeline, part).named_modules():
            if isinstance(module, LoraLayer):
                module.merge()
                found[part, name] = module.base_layer.weight
    return found
