"""Which files a run leaves, by technique and output.formats; what is loaded from them draws what was trained."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from finetune_api import ExitCode, TrainingRun
from finetune_trainer.cli import app
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.exports import check_exports, export_weights
from finetune_trainer.exports.readers import read_adapter, read_hypernetwork, read_words
from finetune_trainer.families import Family, load_family
from finetune_trainer.methods import Method, NoFiles, make_methods
from safetensors.torch import load_file
from support.method_cases import run_of
from support.tiny_sdxl import build_tiny_sdxl
from support.training import make_run
from torch import Tensor, nn
from typer.testing import CliRunner

PROMPT = "a sks dog <toy>"


@pytest.fixture(scope="module")
def models(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"sd": tiny_sd, "sdxl": build_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))}


def trained(case: str, model: Path, **output: object) -> tuple[TrainingRun, Family, tuple[Method, ...]]:
    """As a training leaves it, without the training: everything that it would move is moved."""
    run = run_of(case, output={"uri": "file:///output", **output})
    family = load_family(model, torch.device("cpu"))
    methods = make_methods(run.method, 0)
    numbers = torch.Generator().manual_seed(4)
    for method in methods:
        for group in method.install(family, NoFiles()):
            for parameter in group.parameters.values():
                with torch.no_grad():
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=numbers))
    return run, family, methods


def export(case: str, model: Path, folder: Path, **output: object) -> tuple[Family, tuple[Method, ...], list[str]]:
    run, family, methods = trained(case, model, **output)
    files = export_weights(run, family, [method.result() for method in methods], folder)
    return family, methods, [path.relative_to(folder).as_posix() for path in files]


def drawn(pipeline: DiffusionPipeline, prompt: str = PROMPT) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(0)
    size = {"height": 16, "width": 16}
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"}
    return pipeline(prompt, latents=noise, generator=generator, **settings, **size)[0]


LORA = ["lora/pytorch_lora_weights.safetensors", "lora/tiny.safetensors"]
FILES: list[tuple[str, list[str] | None, list[str]]] = [
    ("lora", None, LORA),
    ("dora", ["Diffusers"], LORA[:1]),
    ("lora", ["Kohya"], LORA[1:]),
    ("lora", ["SingleFile"], ["tiny.safetensors"]),
    ("pivotal", None, ["embeddings/toy.safetensors", *LORA]),
    ("pivotal", ["SingleFile"], ["embeddings/toy.safetensors", "tiny.safetensors"]),
    ("words", None, ["embeddings/toy.safetensors"]),
    ("words", ["Diffusers", "Automatic1111"], ["embeddings/toy.pt", "embeddings/toy.safetensors"]),
    ("hypernetwork", None, ["hypernetwork/tiny.pt", "hypernetwork/tiny.safetensors"]),
    ("dreamBooth", ["SingleFile"], ["tiny.safetensors"]),
]


@pytest.mark.parametrize(("case", "formats", "expected"), FILES)
def test_files(case: str, formats: list[str] | None, expected: list[str], tiny_sd: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("published too, and no weights")
    output = {} if formats is None else {"formats": formats}
    *_, files = export(case, tiny_sd, tmp_path, **output)
    assert files == expected


def test_what_could_not_be_written_is_refused_before_the_training(tiny_sd: Path) -> None:
    family = load_family(tiny_sd, torch.device("cpu"))
    for case in ("lora", "pivotal", "words", "hypernetwork"):
        check_exports(run_of(case), family)
    words = [{"placeholder": "<toy>"}, {"placeholder": "toy"}]
    for method in ({"textualInversion": {"tokens": words}}, {"lora": {"prompt": "a <toy>", "tokens": words}}):
        with pytest.raises(ConfigurationError, match=r"<toy> and toy would both be published as toy\.safetensors"):
            check_exports(make_run(next(iter(method)), method=method), family)


def shaped(part: str, **config: object) -> Callable[[Family], None]:
    return lambda family: family.parts[part].register_to_config(**config)


def more(part: str, place: str) -> Callable[[Family], None]:
    return lambda family: family.parts[part].get_submodule(place).register_module("more", nn.Linear(2, 2))


NAMELESS: list[tuple[str, Callable[[Family], None], str, bool]] = [
    ("blocks of many sizes", shaped("unet", layers_per_block=(1, 2)), r"a UNet with layers_per_block \(1, 2\)", True),
    ("other blocks", shaped("unet", down_block_types=("DownBlock2D", "AttnDownBlock2D")), "with AttnDownBlock2D", True),
    ("another middle", shaped("unet", mid_block_type="UNetMidBlock2D"), "with UNetMidBlock2D has no names", True),
    ("a UNet's layer", more("unet", ""), r"more\.weight has no name in LDM's scheme", False),
    ("a ResNet's", more("unet", "down_blocks.0.resnets.0"), r"more\.weight of a ResNet has no name", False),
    ("a VAE's", more("vae", ""), r"more\.weight of the VAE has no name", False),
    ("its attention's", more("vae", "encoder.mid_block.attentions.0"), "of the VAE has no name", False),
    ("a text encoder's", more("text_encoder", "text_model.encoder.layers.0"), "no name in OpenCLIP's", False),
    ("its attention's", more("text_encoder", "text_model.encoder.layers.0.mlp"), "no name in OpenCLIP's", False),
]


@pytest.mark.parametrize(("name", "change", "message", "kohya"), NAMELESS, ids=[row[0] for row in NAMELESS])
def test_layers_that_a_format_has_no_names_for_are_refused_before_the_training(
    name: str, change: Callable[[Family], None], message: str, kohya: bool, tiny_sd: Path
) -> None:
    family = load_family(tiny_sd, torch.device("cpu"))
    family.parts["text_encoder"].config.hidden_act = "gelu"  # 2.x, whose text encoder is written in OpenCLIP's names

    def lora(name: str) -> TrainingRun:
        return run_of("lora", output={"uri": "file:///output", "formats": [name]})

    for form in ("SingleFile", "Kohya"):
        check_exports(lora(form), family)
    change(family)
    with pytest.raises(ConfigurationError, match=rf"output\.formats: .*{message}.*; use Diffusers"):
        check_exports(lora("SingleFile"), family)
    if kohya:
        with pytest.raises(ConfigurationError, match=rf"output\.formats: .*{message}.*; use Diffusers"):
            check_exports(lora("Kohya"), family)
    else:
        check_exports(lora("Kohya"), family)
    check_exports(lora("Diffusers"), family)


def test_a_run_that_could_not_be_written_ends_before_its_first_step(
    tiny_sd: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = [{"placeholder": "<toy>", "initializer": "d"}, {"placeholder": "toy", "initializer": "d"}]
    spec = {
        "baseModel": {"uri": f"file://{tiny_sd}"},
        "method": {"textualInversion": {"tokens": words}},
        "dataset": {"uri": f"file://{pictures}"},
        "training": {"steps": 4},
        "output": {"uri": "file://./results"},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "toys"}}
    Path("job.yaml").write_text(json.dumps({**head, "spec": spec}))
    result = CliRunner().invoke(app, ["run", "job.yaml"])
    assert result.exit_code == ExitCode.BAD_CONFIGURATION
    assert "would both be published as toy.safetensors; rename one of them" in result.output
    assert "step 1" not in result.output
    assert not list(tmp_path.rglob("step-*"))


def test_words_that_are_in_a_pipeline_need_no_file(tiny_sd: Path, tmp_path: Path) -> None:
    *_, files = export("pivotal", tiny_sd, tmp_path, formats=["Merged"])
    assert {name.split("/")[0] for name in files} == {"pipeline"}


def test_halves_are_halves_but_alpha_is_whole(tiny_sd: Path, tmp_path: Path) -> None:
    """alpha is a factor of everything else in its layer, and a fraction where the scale is 1/√rank."""
    export("dora", tiny_sd, tmp_path, formats=["Diffusers", "Kohya"], dtype="fp16")
    for name in LORA:
        tensors = load_file(tmp_path / name)
        whole = {key for key, tensor in tensors.items() if tensor.dtype == torch.float32}
        assert whole == {key for key in tensors if key.endswith(".alpha")}
        assert {tensor.dtype for tensor in tensors.values()} <= {torch.float16, torch.float32}


@pytest.mark.parametrize(
    ("kind", "case"), [("sd", "dora"), ("sd", "pivotal"), ("sdxl", "lora"), ("sdxl", "dreamBooth"), ("sdxl", "pivotal")]
)
def test_a_pipeline_and_a_single_file_draw_what_was_trained(
    kind: str, case: str, models: dict[str, Path], tmp_path: Path
) -> None:
    formats = ["Diffusers" if case == "dreamBooth" else "Merged", "SingleFile"]
    family, _, files = export(case, models[kind], tmp_path, formats=formats)
    assert "pipeline/model_index.json" in files
    assert ("embeddings/toy.safetensors" in files) == (case == "pivotal")

    single = StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline
    loaded = [
        DiffusionPipeline.from_pretrained(tmp_path / "pipeline", local_files_only=True),
        single.from_single_file(tmp_path / "tiny.safetensors", config=str(models[kind]), local_files_only=True),
    ]
    without = "a sks dog"
    expected = drawn(family.pipeline(), without)
    assert (drawn(DiffusionPipeline.from_pretrained(models[kind]), without) - expected).abs().max() > 1e-2
    for pipeline in loaded:
        # the layout of the live weights in memory is another, and so is the rounding
        assert (drawn(pipeline, without) - expected).abs().max() < 1e-5 * expected.abs().max()
    if case == "pivotal":
        word = read_words(tmp_path / "embeddings" / "toy.safetensors")["<toy>"]
        tokens = loaded[0].tokenizer.convert_tokens_to_ids(["<toy>", "<toy>_1", "<toy>_2"])
        rows = loaded[0].text_encoder.get_input_embeddings().weight[tokens]
        assert torch.equal(rows, word["text_encoder" if kind == "sdxl" else None])


@pytest.mark.parametrize("case", ["lora", "dora", "hypernetwork", "linear hypernetwork", "words"])
def test_what_is_read_again_can_be_put_back(case: str, tiny_sd: Path, tmp_path: Path) -> None:
    _, (method,), files = export(case, tiny_sd, tmp_path)
    family = load_family(tiny_sd, torch.device("cpu"))
    (fresh,) = make_methods(run_of(case).method, 0)
    fresh.install(family, NoFiles())
    if case == "words":
        (word,) = read_words(tmp_path / files[0]).items()
        ((placeholder, rows),) = method.result().words.items()
        assert word[0] == placeholder
        assert torch.equal(word[1][None], rows["text_encoder"].detach())
        return
    readers = [read_hypernetwork(tmp_path / name) for name in files if "hyper" in name and not name.endswith(".pt")]
    readers += [read_adapter(tmp_path / name, family) for name in files if name.startswith("lora/")]
    for result in readers:
        fresh.load(result)
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        cond = family.encode_text(family.tokenize(["sks dog"]))
        step, sizes = torch.tensor([500]), torch.full((1, 6), 16.0)
        given = family.predict(noise, step, cond, sizes)
        _, live, _ = trained(case, tiny_sd)
        expected = live.predict(noise, step, live.encode_text(live.tokenize(["sks dog"])), sizes)
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


def test_the_same_training_gives_the_same_bytes(tiny_sd: Path, tmp_path: Path) -> None:
    for place in ("1", "2"):
        formats = ["Diffusers", "Kohya", "SingleFile", "Merged"]
        *_, files = export("pivotal", tiny_sd, tmp_path / place, formats=formats)
    for name in files:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
