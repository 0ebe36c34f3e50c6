"""What techniques touch and what they leave: nothing else of the base model moves, and a result that is put back on
the base model gives the predictions of the training's end."""

import copy
from pathlib import Path

import pytest
import torch
from finetune_trainer.errors import DataError
from finetune_trainer.families import Family, load_family
from finetune_trainer.methods import (
    AdapterWeights,
    Method,
    NewWords,
    NoFiles,
    ParameterGroup,
    Result,
    WholeParts,
    make_methods,
)
from safetensors.torch import load_file
from support.method_cases import METHODS, TEXT_RATE, run_of
from support.tiny_sdxl import build_tiny_sdxl
from support.training import train_once
from torch import Tensor

BOTH = [("sd", case) for case in METHODS] + [
    ("sdxl", case) for case in ("dreamBooth", "lora", "hypernetwork", "pivotal")
]
ENCODERS = {"sd": {"text_encoder"}, "sdxl": {"text_encoder", "text_encoder_2"}}


@pytest.fixture(scope="module")
def models(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"sd": tiny_sd, "sdxl": build_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))}


def installed(case: str, model: Path) -> tuple[Family, tuple[Method, ...], list[ParameterGroup]]:
    family = load_family(model, torch.device("cpu"))
    methods = make_methods(run_of(case).method, 0)
    return family, methods, [group for method in methods for group in method.install(family, NoFiles())]


def base_tensors(family: Family) -> dict[str, Tensor]:
    """All tensors of all parts, by their names in the base model; what was added has other names."""
    return {
        f"{name}.{key.replace('.base_layer', '')}": tensor.detach().clone()
        for name, part in family.parts.items()
        for key, tensor in [*part.named_parameters(), *part.named_buffers()]
    }


def prediction(family: Family) -> Tensor:
    """At two noise levels, with a caption that has everything in it."""
    for part in family.parts.values():
        part.eval()
    numbers = torch.Generator().manual_seed(3)
    with torch.no_grad():
        cond = family.encode_text(family.tokenize(["a sks dog <toy>"] * 2))
        noisy = torch.randn(2, family.latent_channels, 8, 8, generator=numbers)
        return family.predict(noisy, torch.tensor([100, 700]), cond, torch.full((2, 6), 16.0))


@pytest.mark.parametrize(("kind", "case"), BOTH)
def test_what_is_trained_moves_and_nothing_else(
    kind: str, case: str, models: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    """And all of it has a gradient: an engine may wait for each of them."""
    model = models[kind]
    before = base_tensors(load_family(model, torch.device("cpu")))
    _, methods, groups = installed(case, model)
    first = {name: value.detach().clone() for group in groups for name, value in group.parameters.items()}
    family, outcome = train_once(run_of(case, 3), model, pictures, tmp_path)
    after = base_tensors(family)
    assert before.keys() <= after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    if case == "dreamBooth":
        assert {name.partition(".")[0] for name in moved} == {"unet", *ENCODERS[kind]}
        assert {name for name in first if name not in moved} == set()
        return
    assert moved == set()
    start = {name: value for method in methods for name, value in flat(method.result()).items()}
    trained = {name: value for method in outcome.methods for name, value in flat(method.result()).items()}
    assert len(trained) == len(start) >= len(first)
    assert sum(not torch.equal(trained[name], start[name]) for name in trained) == len(first)


def flat(result: Result) -> dict[str, Tensor]:
    """Its tensors by unique names."""
    assert not isinstance(result, WholeParts)
    if isinstance(result, AdapterWeights):
        return {f"{part}.{key}": value for part, tensors in result.tensors.items() for key, value in tensors.items()}
    if isinstance(result, NewWords):
        return {f"{word}.{part}": rows for word, parts in result.words.items() for part, rows in parts.items()}
    return {
        f"{width}.{side}.{key}": value
        for width, pair in result.layers.items()
        for side, weights in enumerate(pair)
        for key, value in weights.items()
    }


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, case in BOTH if case != "dreamBooth"])
def test_a_result_put_back_draws_what_it_drew_at_the_end(
    kind: str, case: str, models: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    trained, outcome = train_once(run_of(case, 3), models[kind], pictures, tmp_path)
    family, methods, _ = installed(case, models[kind])
    untrained = prediction(family)
    for method, done in zip(methods, outcome.methods, strict=True):
        method.load(copy.deepcopy(done.result()))
    assert torch.equal(prediction(family), prediction(trained))
    assert not torch.equal(prediction(family), untrained)


def test_a_whole_model_is_no_file_to_put_on_another(tiny_sd: Path) -> None:
    _, (method,), _ = installed("dreamBooth", tiny_sd)
    assert method.result() == WholeParts(("unet", "text_encoder"))
    with pytest.raises(DataError, match="give its folder as the base model"):
        method.load(method.result())


@pytest.mark.parametrize(
    ("case", "rates", "decays", "live", "captions"),
    [
        ("dreamBooth", [None, TEXT_RATE], [None, None], True, ("sks dog",)),
        ("lora", [None, TEXT_RATE], [None, None], True, ("sks dog",)),
        ("dora", [None], [None], False, ("sks dog",)),
        ("words", [None], [0.0], True, ("<toy>",)),
        ("hypernetwork", [None], [None], False, ("sks dog",)),
        ("pivotal", [None, TEXT_RATE, None], [None, None, 0.0], True, ("a <toy>",)),
    ],
)
def test_what_engine_and_data_are_told(
    case: str,
    rates: list[float | None],
    decays: list[float | None],
    live: bool,
    captions: tuple[str, ...],
    tiny_sd: Path,
) -> None:
    _, methods, groups = installed(case, tiny_sd)
    assert [group.learning_rate for group in groups] == rates
    assert [group.weight_decay for group in groups] == decays
    assert any(method.needs.live_text_encoder for method in methods) is live
    assert {caption for method in methods for caption in method.captions} == set(captions)
    names = [name for group in groups for name in group.parameters]
    assert len(names) == len(set(names))
    assert all(value.requires_grad for group in groups for value in group.parameters.values())


@pytest.mark.parametrize("case", METHODS)
def test_first_values_depend_on_the_seed_alone(case: str, tiny_sd: Path) -> None:
    torch.manual_seed(1)
    _, _, one = installed(case, tiny_sd)
    torch.manual_seed(2)
    _, _, other = installed(case, tiny_sd)
    for mine, its in zip(one, other, strict=True):
        assert list(mine.parameters) == list(its.parameters)
        assert all(torch.equal(mine.parameters[name], its.parameters[name]) for name in mine.parameters)


@pytest.mark.parametrize("case", ["lora", "dora"])
def test_matrices_start_at_the_base_model(case: str, tiny_sd: Path) -> None:
    base = load_family(tiny_sd, torch.device("cpu"))
    family, _, _ = installed(case, tiny_sd)
    torch.testing.assert_close(prediction(family), prediction(base), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("case", "unread"), [("dreamBooth", 16 + 2), ("lora", 12)])
def test_layers_that_the_model_does_not_read_are_not_waited_for(
    case: str, unread: int, models: dict[str, Path]
) -> None:
    """SDXL reads the last but one layer of its first text encoder: what lies above has no gradient."""
    family, (method,), groups = installed(case, models["sdxl"])
    trained = {name for group in groups for name in group.parameters}
    encoder = family.parts["text_encoder"]
    resting = [name for name, value in encoder.named_parameters() if f"text_encoder.{name}" not in trained]
    above = [name for name in resting if "layers.2." in name or "final_layer_norm" in name]
    assert len([name for name in above if case == "dreamBooth" or "lora_" in name]) == unread
    assert not any(value.requires_grad for name, value in encoder.named_parameters() if name in resting)
    result = method.result()
    if isinstance(result, AdapterWeights):
        # in the file they stand all the same, as in other trainers' files
        assert sum("layers.2." in key for key in result.tensors["text_encoder"]) == unread


def test_words_keep_the_length_that_is_usual(tiny_sd: Path, pictures: Path, tmp_path: Path) -> None:
    usual = load_family(tiny_sd, torch.device("cpu")).vocabulary("text_encoder").norm(dim=1).mean()
    lengths = {}
    for case in ("words", "mean word"):
        _, outcome = train_once(run_of(case), tiny_sd, pictures, tmp_path / case)
        result = outcome.methods[0].result()
        assert isinstance(result, NewWords)
        lengths[case] = result.words["<toy>"]["text_encoder"].norm(dim=1)
    torch.testing.assert_close(lengths["words"], usual.expand(3))
    assert ((lengths["mean word"] - usual).abs() > 0.05 * usual).all()


@pytest.mark.parametrize("side", [0, 1])
def test_a_copy_of_the_denoiser_has_hypernetworks_of_its_own(side: int, tiny_sd: Path) -> None:
    """Of keys (0) and of values (1): what changes in the copy shows there and only there."""
    family, _, _ = installed("hypernetwork", tiny_sd)
    unet, text = family.parts["unet"], torch.randn(1, 3, 24, generator=torch.Generator().manual_seed(1))
    before = unet(torch.ones(1, 4, 8, 8), 5, text).sample
    twin = copy.deepcopy(unet)
    with torch.no_grad():
        for value in twin.hypernetwork["24"][side].parameters():
            value.add_(1.0)
    assert torch.equal(unet(torch.ones(1, 4, 8, 8), 5, text).sample, before)
    assert not torch.equal(twin(torch.ones(1, 4, 8, 8), 5, text).sample, before)


def test_hypernetworks_leave_the_fused_attention_in_place(tiny_sd: Path) -> None:
    """They act on what goes into to_k and to_v; who computes the attention stays."""
    family, _, _ = installed("hypernetwork", tiny_sd)
    plain = load_family(tiny_sd, torch.device("cpu")).parts["unet"].attn_processors
    kinds = {name: type(processor) for name, processor in family.parts["unet"].attn_processors.items()}
    assert kinds == {name: type(processor) for name, processor in plain.items()}
    assert {kind.__name__ for kind in kinds.values()} == {"AttnProcessor2_0"}


def test_hypernetworks_do_not_go_into_files_of_the_denoiser(tiny_sd: Path, tmp_path: Path) -> None:
    family, _, _ = installed("hypernetwork", tiny_sd)
    plain = load_family(tiny_sd, torch.device("cpu")).parts["unet"].state_dict()
    family.parts["unet"].save_pretrained(tmp_path)
    saved = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == plain.keys()
    assert all(torch.equal(saved[name], plain[name]) for name in plain)
