"""What a technique starts from, and settings and files that it cannot start from: an error that says what to change,
with the exit code for data (65) or for settings (78)."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from finetune_api import ExitCode
from finetune_api.methods import MethodSpec
from finetune_trainer.errors import ConfigurationError, DataError, RunError
from finetune_trainer.families import Family, load_family
from finetune_trainer.methods import AdapterWeights, NewWords, ParameterGroup, make_methods
from finetune_trainer.methods.lora import TARGETS
from finetune_trainer.methods.outline import layers_of, outline
from safetensors.torch import save_file
from torch import Tensor

PROMPT = {"prompt": "sks dog"}
TOY = {"placeholder": "<toy>"}


class Beside:
    """Implements Files: any URI is a file in this folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, uri: str) -> Path:
        return self.folder / uri.rpartition("/")[2]


def check(technique: str, settings: Mapping[str, object], model: Path, folder: Path | None = None) -> None:
    family = load_family(model, torch.device("cpu"))
    for method in make_methods(MethodSpec.model_validate({technique: settings}), 0):
        method.check(family, Beside(folder or Path("/nowhere")))


def install(
    technique: str, settings: Mapping[str, object], model: Path, folder: Path | None = None
) -> tuple[Family, list[ParameterGroup], list[object]]:
    family = load_family(model, torch.device("cpu"))
    methods = make_methods(MethodSpec.model_validate({technique: settings}), 0)
    files = Beside(folder or Path("/nowhere"))
    groups = [group for method in methods for group in method.install(family, files)]
    return family, groups, [method.result() for method in methods]


@pytest.mark.parametrize(
    ("technique", "settings", "message"),
    [
        (
            "lora",
            {"rank": 17, "targets": ["attention", "convolution"]},
            "method.lora.rank is 17, and unet.down_blocks.0.resnets.0.conv1 is a matrix of 16 × 144, which has no "
            "higher rank than 16; use at most that",
        ),
        (
            "lora",
            {"rank": 25, "trainTextEncoder": True},
            "method.lora.rank is 25, and unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k is a matrix "
            "of 32 × 24",
        ),
        (
            "lora",
            {"rank": 4, "targets": ["convolution"], "trainTextEncoder": True},
            "method.lora.targets has only convolution, which a text encoder does not have; add attention, or set",
        ),
        (
            "lora",
            {"rank": 4, "tokens": [TOY]},
            r"method.lora.tokens\[0\].placeholder is <toy>, which does not stand in the prompt \(sks dog\)",
        ),
        (
            "lora",
            {"rank": 4, "prompt": "a sksy", "tokens": [{"placeholder": "sks"}]},
            r"method.lora.tokens\[0\].placeholder is sks, which does not stand in the prompt \(a sksy\)",
        ),
        (
            "textualInversion",
            {"tokens": [{"placeholder": "d"}]},
            r"method.textualInversion.tokens\[0\].placeholder is d, which is in the model's vocabulary already; choose "
            "a word that is not, such as <d-1>",
        ),
        (
            "textualInversion",
            {"tokens": [TOY, TOY]},
            r"method.textualInversion.tokens\[1\].placeholder is <toy>, as another token's is",
        ),
        (
            "textualInversion",
            {"tokens": [TOY, {"placeholder": "<Toy>"}]},
            r"method.textualInversion.tokens\[1\].placeholder is <Toy>, as another token's is",
        ),
        (
            "textualInversion",
            {"tokens": [TOY | {"initializer": "d dog", "vectors": 2}]},
            r"tokens\[0\].initializer has 'dog', which is no token of the model's vocabulary",
        ),
        (
            "textualInversion",
            {"tokens": [TOY | {"initializer": "d o g", "vectors": 2}]},
            r"tokens\[0\].initializer has 3 words, and vectors is 2; set vectors: 3",
        ),
        (
            "textualInversion",
            {"tokens": [TOY | {"initializer": " "}]},
            r"tokens\[0\].initializer is blank; give a word, or remove the field",
        ),
        (
            "hypernetwork",
            {"sizes": [24, 768]},
            "method.hypernetwork.sizes has 768, and no attention of this model has such a context; there are 24, 32",
        ),
        (
            "hypernetwork",
            {"layerStructure": [1, 2]},
            r"method.hypernetwork.layerStructure is \[1, 2\]; its first and last number must be 1",
        ),
        (
            "hypernetwork",
            {"layerStructure": [1, 0.01, 1]},
            "method.hypernetwork.layerStructure has 0.01, which leaves nothing of a width of 24; use at least 0.0417",
        ),
    ],
)
@pytest.mark.parametrize("asked", [check, install])
def test_settings_that_cannot_work(
    technique: str, settings: dict[str, object], message: str, asked: Callable[..., object], tiny_sd: Path
) -> None:
    prompt = {} if technique == "textualInversion" else PROMPT
    with pytest.raises(ConfigurationError, match=message) as refused:
        asked(technique, prompt | settings, tiny_sd)
    assert refused.value.exit_code == ExitCode.BAD_CONFIGURATION == 78


def test_a_layer_that_the_model_does_not_have_is_no_target(tiny_sd: Path) -> None:
    family = load_family(tiny_sd, torch.device("cpu"))
    block = family.parts["unet"].get_submodule("down_blocks.1.attentions.0.transformer_blocks.0")
    assert hasattr(block, "ff")
    for module in family.parts["unet"].modules():
        if hasattr(module, "ff"):
            del module.ff
    (method,) = make_methods(MethodSpec.model_validate({"lora": PROMPT | {"rank": 4, "targets": ["feedForward"]}}), 0)
    with pytest.raises(ConfigurationError, match="targets has feedForward, and the model's unet has no"):
        method.install(family, Beside(Path("/nowhere")))


LORA = PROMPT | {"rank": 4, "alpha": 2, "trainTextEncoder": True, "targets": ["attention", "convolution"]}


def random_adapter(model: Path, settings: Mapping[str, object]) -> AdapterWeights:
    """The weights of a LoRA that learned something, apart from the training."""
    _, groups, (result,) = install("lora", settings, model)
    numbers = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for group in groups:
            for value in group.parameters.values():
                value.add_(0.1 * torch.randn(value.shape, generator=numbers))
    assert isinstance(result, AdapterWeights)
    return result


def write(weights: AdapterWeights, file: Path, naming: str, alpha: float) -> None:
    """As Diffusers or kohya's scripts write it."""
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
    tensors = {}
    for part, inside in weights.tensors.items():
        for key, tensor in inside.items():
            if naming == "Diffusers":
                tensors[f"{part}.{key}"] = tensor
                continue
            layer, _, kind = key.partition(".lora_")
            name = f"{prefixes[part]}_{layer.replace('.', '_')}"
            tensors[f"{name}.lora_{'down' if kind == 'A.weight' else 'up'}.weight"] = tensor
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, file)


@pytest.mark.parametrize(("naming", "alpha"), [("Diffusers", 4.0), ("kohya", 1.0), ("kohya", 4.0)])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_lora_goes_on_from_a_file_at_the_strength_it_had(
    naming: str, alpha: float, rslora: bool, tiny_sd: Path, tmp_path: Path
) -> None:
    """Files of Diffusers without a header have the scale 1; kohya's say alpha for each layer."""
    written = random_adapter(tiny_sd, LORA)
    write(written, tmp_path / "old.safetensors", naming, alpha)
    settings = LORA | {"continueFrom": "file:///old.safetensors", "useRslora": rslora}
    _, _, (result,) = install("lora", settings, tiny_sd, tmp_path)
    assert isinstance(result, AdapterWeights)
    own_scale = 2 / (2 if rslora else 4)
    for part, tensors in written.tensors.items():
        for key, tensor in tensors.items():
            strength = alpha / 4 / own_scale if "lora_B" in key else 1.0
            torch.testing.assert_close(result.tensors[part][key], tensor * strength)


@pytest.mark.parametrize("dora", [False, True])
def test_how_large_the_matrices_will_be_is_known_before_there_are_any(
    dora: bool, tiny_sd: Path, tmp_path: Path
) -> None:
    """Matrices of linear layers and of convolutions, in both parts; and nothing is changed by looking."""
    settings = LORA | {"targets": ["attention", "feedForward", "convolution"], "useDora": dora}
    family = load_family(tiny_sd, torch.device("cpu"))
    before = {name: value.clone() for name, value in family.parts["unet"].named_parameters()}
    ends = {"unet": [end for kind in TARGETS.values() for end in kind], "text_encoder": ["q_proj", "mlp.fc1"]}
    foreseen = {part: outline(layers_of(family.parts[part], ends[part]), 4, dora) for part in ends}
    write(random_adapter(tiny_sd, settings), tmp_path / "old.safetensors", "Diffusers", 4.0)
    (method,) = make_methods(
        MethodSpec.model_validate({"lora": settings | {"continueFrom": "file:///old.safetensors"}}), 0
    )
    method.check(family, Beside(tmp_path))
    after = dict(family.parts["unet"].named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    method.install(family, Beside(tmp_path))
    made = method.result()
    assert isinstance(made, AdapterWeights)
    shapes = {part: {key: value.shape for key, value in tensors.items()} for part, tensors in made.tensors.items()}
    assert {key: value.shape for key, value in foreseen["unet"].items()} == shapes["unet"]
    text = {key: value.shape for key, value in foreseen["text_encoder"].items()}
    assert text.items() <= shapes["text_encoder"].items()
    assert len(text) == len([key for key in shapes["text_encoder"] if "q_proj" in key or "fc1" in key])


def test_magnitudes_go_on_too(tiny_sd: Path, tmp_path: Path) -> None:
    written = random_adapter(tiny_sd, LORA | {"useDora": True})
    write(written, tmp_path / "old.safetensors", "Diffusers", 4.0)
    settings = LORA | {"continueFrom": "file:///old.safetensors", "useDora": True, "alpha": 4}
    _, _, (result,) = install("lora", settings, tiny_sd, tmp_path)
    assert isinstance(result, AdapterWeights)
    assert any(key.endswith("lora_magnitude_vector") for key in result.tensors["text_encoder"])
    for part, tensors in written.tensors.items():
        assert result.tensors[part].keys() == tensors.keys()
        assert all(torch.equal(result.tensors[part][key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            {},
            {"rank": 8},
            r"continueFrom \(old.safetensors\) has rank 4 at unet\..*, and method.lora.rank is 8; set ra",
        ),
        ({}, {"trainTextEncoder": False}, "has matrices for the text_encoder too; set method.lora.trainTextEncoder: t"),
        ({"trainTextEncoder": False}, {}, "has nothing for the text_encoder; set method.lora.trainTextEncoder: false"),
        ({}, {"targets": ["attention"]}, "has matrices too for .* and 20 more layers of the unet; set method.lora.tar"),
        ({"targets": ["attention"]}, {}, "has nothing for .* and 20 more layers of the unet; set method.lora.targets"),
        ({"useDora": True}, {}, "is a DoRA: it has magnitudes for the unet; set method.lora.useDora: true"),
        ({}, {"useDora": True}, "is no DoRA: it has no magnitudes for the unet; set method.lora.useDora: false"),
    ],
)
@pytest.mark.parametrize("asked", [check, install])
def test_a_lora_that_does_not_fit_the_settings(
    old: dict[str, object],
    new: dict[str, object],
    message: str,
    asked: Callable[..., object],
    tiny_sd: Path,
    tmp_path: Path,
) -> None:
    write(random_adapter(tiny_sd, LORA | old), tmp_path / "old.safetensors", "Diffusers", 4.0)
    with pytest.raises(DataError, match=message) as refused:
        asked("lora", LORA | new | {"continueFrom": "file:///old.safetensors"}, tiny_sd, tmp_path)
    assert refused.value.exit_code == ExitCode.BAD_DATA == 65


def start_of(token: dict[str, object], model: Path, folder: Path | None = None, keep: bool = False) -> Tensor:
    settings = {"tokens": [TOY | token], "normalizeEmbeddings": keep}
    _, _, (result,) = install("textualInversion", settings, model, folder)
    assert isinstance(result, NewWords)
    return result.words["<toy>"]["text_encoder"]


def test_vectors_start_from_words_a_file_or_the_mean(tiny_sd: Path, tmp_path: Path) -> None:
    family = load_family(tiny_sd, torch.device("cpu"))
    table = family.vocabulary("text_encoder")
    d, o = family.tokenize(["d o"])[0, 0, 1:3].tolist()
    assert torch.equal(start_of({"initializer": "d o", "vectors": 2}, tiny_sd), table[[d, o]])
    assert torch.equal(start_of({"initializer": "d  o ", "vectors": 5}, tiny_sd), table[[d, o, d, o, d]])
    assert torch.equal(start_of({"vectors": 2}, tiny_sd), table.mean(0).expand(2, -1))
    rows = torch.arange(48.0).reshape(2, 24) + 1
    save_file({"<toy>": rows}, tmp_path / "a.safetensors")
    from_file = {"initialEmbeddingUri": "file:///a.safetensors", "vectors": 2}
    assert torch.equal(start_of(from_file, tiny_sd, tmp_path), rows)
    usual = table.norm(dim=1).mean()
    torch.testing.assert_close(
        start_of(from_file, tiny_sd, tmp_path, keep=True), rows / rows.norm(dim=1)[:, None] * usual
    )


@pytest.mark.parametrize(
    ("content", "vectors", "message"),
    [
        (
            {"<toy>": (1, 768)},
            1,
            r"tokens\[0\].initialEmbeddingUri: a.safetensors has vectors 768 wide, and those of this model's "
            "text_encoder are 24 wide",
        ),
        ({"<toy>": (3, 24)}, 1, r"a.safetensors has 3 vectors, and vectors is 1; set vectors: 3"),
        (
            {"clip_l": (1, 24), "clip_g": (1, 32)},
            1,
            "a.safetensors has vectors for text_encoder and text_encoder_2, and this model reads text with "
            "text_encoder; give",
        ),
    ],
)
def test_an_embedding_that_does_not_fit(
    content: dict[str, tuple[int, int]], vectors: int, message: str, tiny_sd: Path, tmp_path: Path
) -> None:
    save_file({key: torch.ones(shape) for key, shape in content.items()}, tmp_path / "a.safetensors")
    with pytest.raises(RunError, match=message) as refused:
        start_of({"initialEmbeddingUri": "file:///a.safetensors", "vectors": vectors}, tiny_sd, tmp_path)
    assert refused.value.exit_code == ExitCode.BAD_DATA


def test_several_words_stand_in_one_caption(tiny_sd: Path) -> None:
    family = load_family(tiny_sd, torch.device("cpu"))
    tokens = [TOY, {"placeholder": "<hat>", "vectors": 2}]
    (method,) = make_methods(MethodSpec.model_validate({"textualInversion": {"tokens": tokens}}), 0)
    (group,) = method.install(family, Beside(Path("/nowhere")))
    assert sorted(group.parameters) == ["words.text_encoder.<hat>", "words.text_encoder.<toy>"]
    assert method.captions == ("<toy> <hat>",)
    (ids,) = family.tokenize(method.captions)[0].tolist()
    assert ids[1:5] == [514, 515, 516, 513]
