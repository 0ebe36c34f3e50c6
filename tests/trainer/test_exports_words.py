"""Files of new words: what Diffusers, AUTOMATIC1111 and ComfyUI make of them, and what is read of others' files."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from finetune_trainer.errors import ConfigurationError, DataError
from finetune_trainer.exports.legacy_torch import write_legacy
from finetune_trainer.exports.readers import read_words
from finetune_trainer.exports.words import file_names, write_words
from finetune_trainer.families import Family, load_family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.consumers_files import comfy_embedding, webui_embedding, webui_load_pickled
from support.tiny_sdxl import build_tiny_sdxl
from torch import Tensor

WORD = "<sks-dog>"


@pytest.fixture(scope="module")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))


def vectors(family: Family, count: int = 3, seed: int = 0) -> dict[str, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return {
        part: torch.randn(count, family.vocabulary(part).shape[1], generator=numbers) for part in family.text_encoders
    }


@pytest.fixture(scope="module")
def sd(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, dict[str, Tensor], Path]:
    family = load_family(tiny_sd, torch.device("cpu"))
    rows, folder = vectors(family), tmp_path_factory.mktemp("embeddings")
    write_words(family, {WORD: rows}, folder, "fp32", pickled=True)
    return family, rows, folder


@pytest.fixture(scope="module")
def xl(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, dict[str, Tensor], Path]:
    family = load_family(tiny_sdxl, torch.device("cpu"))
    rows, folder = vectors(family), tmp_path_factory.mktemp("embeddings")
    write_words(family, {WORD: rows}, folder, "fp32", pickled=True)
    return family, rows, folder


Written = tuple[Family, dict[str, Tensor], Path]


def test_one_small_file_that_is_called_like_the_word(sd: Written) -> None:
    _, rows, folder = sd
    assert sorted(path.name for path in folder.iterdir()) == ["sks-dog.pt", "sks-dog.safetensors"]
    file = folder / "sks-dog.safetensors"
    assert list(load_file(file)) == [WORD]
    assert file.stat().st_size < rows["text_encoder"].numel() * 4 + 1024
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {
            "format": "pt",
            "modelspec.architecture": "stable-diffusion-v1/textual-inversion",
            "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
            "modelspec.prediction_type": "epsilon",
            "modelspec.resolution": "16x16",
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.title": "sks-dog",
            "placeholder": WORD,
        }


@pytest.mark.parametrize(("name", "word"), [("sks-dog.safetensors", WORD), ("sks-dog.pt", "sks-dog")])
def test_diffusers_takes_it_for_sd(name: str, word: str, sd: Written, tiny_sd: Path) -> None:
    _, rows, folder = sd
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None, local_files_only=True)
    pipeline.load_textual_inversion(folder / name)
    ids = pipeline.tokenizer.convert_tokens_to_ids([word, f"{word}_1", f"{word}_2"])
    table = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[ids], rows["text_encoder"])
    assert pipeline.maybe_convert_prompt(f"a {word}", pipeline.tokenizer) == f"a {word} {word}_1 {word}_2"


def test_diffusers_takes_it_for_sdxl(xl: Written, tiny_sdxl: Path) -> None:
    _, rows, folder = xl
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, local_files_only=True)
    state = load_file(folder / "sks-dog.safetensors")
    assert sorted(state) == ["clip_g", "clip_l"]
    for key, number in (("clip_l", ""), ("clip_g", "_2")):
        tokenizer, encoder = getattr(pipeline, f"tokenizer{number}"), getattr(pipeline, f"text_encoder{number}")
        pipeline.load_textual_inversion({WORD: state[key]}, token=WORD, text_encoder=encoder, tokenizer=tokenizer)
        ids = tokenizer.convert_tokens_to_ids([WORD, f"{WORD}_1", f"{WORD}_2"])
        assert torch.equal(encoder.get_input_embeddings().weight[ids], rows[f"text_encoder{number}"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_web_uis_take_it(sd: Written, xl: Written, suffix: str) -> None:
    _, rows, folder = sd
    word, found = webui_embedding(folder / f"sks-dog{suffix}")
    assert word == "sks-dog"
    assert torch.equal(found[""], rows["text_encoder"])
    assert torch.equal(comfy_embedding(folder / f"sks-dog{suffix}", "clip_l"), rows["text_encoder"])

    _, rows, folder = xl
    _, found = webui_embedding(folder / f"sks-dog{suffix}")
    for key, part in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2")):
        assert torch.equal(found[key], rows[part])
        assert torch.equal(comfy_embedding(folder / f"sks-dog{suffix}", key), rows[part])


def test_what_torch_writes_today_the_web_ui_refuses(tmp_path: Path) -> None:
    """The reason for a serialisation of our own; the day this fails, it can go."""
    torch.save({"string_to_param": {"*": torch.zeros(1, 768)}}, tmp_path / "word.pt")
    with pytest.raises(AssertionError, match=r"bad file inside word\.pt"):
        webui_load_pickled(tmp_path / "word.pt")


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_the_same_words_give_the_same_bytes(sd: Written, dtype: str, tmp_path: Path) -> None:
    family, rows, _ = sd
    for place in ("1", "2"):
        # strings and tensors that are other objects the second time
        words = {"".join(WORD): {part: row.clone() for part, row in rows.items()}}
        write_words(family, words, tmp_path / place, dtype, pickled=True)
    for name in ("sks-dog.pt", "sks-dog.safetensors"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
        _, found = webui_embedding(tmp_path / "1" / name)
        torch.testing.assert_close(found[""], rows["text_encoder"], rtol=1e-3, atol=1e-3)


def test_whether_two_strings_are_one_object_is_not_seen(tmp_path: Path) -> None:
    one = "".join(["li", "near"])
    for name, other in (("same", one), ("equal", "".join(["lin", "ear"]))):
        write_legacy(tmp_path / name, {1: {one: ROWS}, 2: {other: ROWS}})
    assert (tmp_path / "same").read_bytes() == (tmp_path / "equal").read_bytes()


def test_each_word_has_a_file_of_its_own() -> None:
    assert file_names(["<a>", "sks", "<x/../y>"]) == {"<a>": "a", "sks": "sks", "<x/../y>": "x_.._y"}
    with pytest.raises(ConfigurationError, match=r"<a> and a would both be published as a\.safetensors; rename"):
        file_names(["<a>", "a"])


def test_own_files_are_read_again(sd: Written, xl: Written) -> None:
    _, rows, folder = sd
    (word, found), *_ = read_words(folder / "sks-dog.safetensors").items()
    assert word == WORD
    assert torch.equal(found[None], rows["text_encoder"])
    (word, found), *_ = read_words(folder / "sks-dog.pt").items()
    assert word == "sks-dog"
    assert torch.equal(found[None], rows["text_encoder"])
    _, rows, folder = xl
    (word, found), *_ = read_words(folder / "sks-dog.safetensors").items()
    assert word == WORD
    assert found.keys() == rows.keys()
    assert all(torch.equal(found[part], rows[part]) for part in rows)


ROWS = torch.arange(6.0).reshape(2, 3)
LAYOUTS = {
    "Diffusers": ({"<cat>": ROWS}, "<cat>"),
    "Diffusers, one vector": ({"<cat>": ROWS[0]}, "<cat>"),
    "kohya": ({"emb_params": ROWS}, None),
    "OneTrainer": ({"emp_params": ROWS, "emp_params_out": ROWS}, None),
    "AUTOMATIC1111": ({"string_to_token": {"*": 265}, "string_to_param": {"*": ROWS}, "name": "cat"}, "cat"),
    "AUTOMATIC1111, parameters": (
        {"string_to_param": {"*": torch.nn.Parameter(ROWS)}, "name": "cat", "step": 5},
        "cat",
    ),
}


FILES = [
    (layout, suffix)
    for layout in LAYOUTS
    for suffix in (".safetensors", ".pt", ".bin")
    if suffix != ".safetensors" or not layout.startswith("AUTOMATIC1111")
]


@pytest.mark.parametrize(("layout", "suffix"), FILES)
def test_layouts_that_are_about(layout: str, suffix: str, tmp_path: Path) -> None:
    content, expected = LAYOUTS[layout]
    path = tmp_path / f"file{suffix}"
    if suffix == ".safetensors":
        save_file({key: value.contiguous().clone() for key, value in content.items()}, path)
    else:
        torch.save(content, path)
    (word, found), *_ = read_words(path).items()
    assert word == expected
    assert torch.equal(found[None], ROWS[:1] if layout.endswith("one vector") else ROWS)


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self._mark),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_run(zipped: bool, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "word.pt"
    torch.save({"<cat>": ROWS, "trap": Trap(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"word\.pt cannot be read .* may run code: give a \.safetensors file"):
        read_words(path)
    assert not mark.exists()
    path.write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(DataError, match=r"word\.pt"):
        read_words(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": ROWS, "b": ROWS + 1}, r"has 2 tensors \(a, b\); an embedding has one, or clip_l and clip_g"),
        ({}, "has 0 tensors"),
        ({"a": torch.zeros(2, 2, 2)}, "torch.float32 of 2 × 2 × 2; an embedding is finite numbers, vectors × width"),
        ({"a": torch.zeros(2, 3, dtype=torch.int64)}, "torch.int64"),
        ({"a": torch.full((2, 3), torch.nan)}, "finite"),
        ({"clip_l": ROWS, "clip_g": ROWS[:1].clone()}, "has 1 and 2 vectors for the two text encoders"),
    ],
)
def test_other_tensors_are_refused(content: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    save_file(content, tmp_path / "file.safetensors")
    with pytest.raises(DataError, match=message):
        read_words(tmp_path / "file.safetensors")


def test_damaged_files_are_refused(sd: Written, tmp_path: Path) -> None:
    _, _, folder = sd
    for name in ("sks-dog.safetensors", "sks-dog.pt"):
        whole = (folder / name).read_bytes()
        for size in (0, 5, 20, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(DataError, match=name):
                read_words(tmp_path / name)
        (tmp_path / name).write_text(json.dumps({"emb_params": [1, 2]}))
        with pytest.raises(DataError, match=name):
            read_words(tmp_path / name)
    torch.save([ROWS], tmp_path / "list.pt")
    with pytest.raises(DataError, match=r"holds a list; an embedding is a dictionary"):
        read_words(tmp_path / "list.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["sks-dog.safetensors", "sks-dog.pt"]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_changed_bytes_are_refused_or_read(
    name: str, changes: list[tuple[int, int]], sd: Written, tmp_path: Path
) -> None:
    _, _, folder = sd
    content = bytearray((folder / name).read_bytes())
    for place, value in changes:
        content[place] = value
    (tmp_path / name).write_bytes(content)
    try:
        words = read_words(tmp_path / name)
    except DataError as error:
        assert str(error).startswith(name)
    else:
        assert all(rows.dim() == 2 for vectors in words.values() for rows in vectors.values())


def test_the_old_serialisation_keeps_what_it_is_given(tmp_path: Path) -> None:
    content = {320: ({"a": ROWS}, {"a": ROWS.half()}), "step": 0, "name": None, "structure": [1, 2.5, 1], "flag": False}
    write_legacy(tmp_path / "file.pt", content)
    for weights_only in (True, False):
        again = torch.load(tmp_path / "file.pt", weights_only=weights_only)
        assert {key: value for key, value in again.items() if key != 320} == {
            key: value for key, value in content.items() if key != 320
        }
        assert torch.equal(again[320][0]["a"], ROWS)
        assert torch.equal(again[320][1]["a"], ROWS.half())
