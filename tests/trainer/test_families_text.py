"""Text: clip skip, prompts of any length, and new words, in families with one text encoder and with two."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from finetune_trainer.errors import ConfigurationError, DataError
from finetune_trainer.families import Cond, Family, load_family
from finetune_trainer.families.noise import drawing_scheduler
from finetune_trainer.families.words import Vocabulary
from safetensors.torch import load_file
from support.tiny_sdxl import build_tiny_sdxl
from torch import Tensor

CPU = torch.device("cpu")
ROOM = 22
"""Tokens in a window of the tiny models; a letter is one."""
PIPELINES = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}


@pytest.fixture(scope="module")
def models(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"sd": tiny_sd, "sdxl": build_tiny_sdxl(tmp_path_factory.mktemp("sdxl"))}


@pytest.fixture(params=["sd", "sdxl"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def family(kind: str, models: dict[str, Path]) -> Family:
    return load_family(models[kind], CPU)


def encode(family: Family, *prompts: str, chunks: int = 1) -> Cond:
    with torch.no_grad():
        return family.encode_text(family.tokenize(prompts, chunks))


@torch.no_grad()
def encoded_by(pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline, prompt: str, **more: int) -> Tensor:
    """Diffusers' embeddings."""
    embeddings: Tensor = pipeline.encode_prompt(
        [prompt], device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False, **more
    )[0]
    return embeddings


def same(one: Cond, other: Cond) -> bool:
    pooled = one.pooled is None if other.pooled is None else torch.equal(one.pooled, other.pooled)
    return torch.equal(one.embeddings, other.embeddings) and pooled


def random_word(family: Family, count: int, seed: int = 0) -> dict[str, Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return {
        part: torch.randn(count, family.vocabulary(part).shape[1], generator=numbers) for part in family.text_encoders
    }


# clip skip


def test_clip_skip_is_that_of_diffusers(kind: str, models: dict[str, Path]) -> None:
    family, plain = load_family(models[kind], CPU, clip_skip=1), load_family(models[kind], CPU)
    pipeline = PIPELINES[kind].from_pretrained(models[kind])
    pipeline.set_progress_bar_config(disable=True)
    theirs = encoded_by(pipeline, "a dog", clip_skip=1)
    assert torch.equal(encode(family, "a dog").embeddings, theirs)
    assert not torch.equal(encode(plain, "a dog").embeddings, theirs)

    pipeline.scheduler = drawing_scheduler(dict(pipeline.scheduler.config))
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    (ours,) = family.draw(["a dog"], [""], noise, 2, 1.0)
    (picture,) = pipeline(["a dog"], latents=noise, num_inference_steps=2, guidance_scale=1.0, clip_skip=1).images
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(picture))
    assert family.sampler == {**plain.sampler, "clip_skip": 1}, "class pictures drawn otherwise are not taken for these"


@pytest.mark.parametrize(("name", "skip", "layers", "most"), [("sd", 2, 2, 1), ("sdxl", 2, 3, 1)])
def test_a_clip_skip_that_leaves_no_layer(
    name: str, skip: int, layers: int, most: int, models: dict[str, Path]
) -> None:
    said = f"text_encoder of this model has {layers} layers; use at most {most}$"
    with pytest.raises(ConfigurationError, match=rf"^training\.clipSkip is {skip}, but {said}"):
        load_family(models[name], CPU, clip_skip=skip)


# long prompts

LONG = "abcdefghij" * 5


def test_how_many_windows_a_prompt_needs(family: Family) -> None:
    assert [family.chunks_of(prompt) for prompt in ("", "a", "a" * ROOM, "a" * (ROOM + 1), LONG)] == [1, 1, 1, 2, 3]


def test_a_long_prompt_is_its_windows_one_after_the_other(family: Family) -> None:
    """Words are cut at the same places, so that each window is a prompt of its own."""
    parts = ["abcdefghij k lmnopqrstuv", "wx yz"]
    whole = encode(family, " ".join(parts), chunks=2)
    windows = [encode(family, part) for part in parts]
    torch.testing.assert_close(whole.embeddings, torch.cat([each.embeddings for each in windows], dim=1))
    if whole.pooled is not None:
        torch.testing.assert_close(whole.pooled, windows[0].pooled)


def test_what_does_not_fit_is_cut_as_the_tokenizer_does(family: Family, kind: str, models: dict[str, Path]) -> None:
    pipeline = PIPELINES[kind].from_pretrained(models[kind])
    for prompt in ("", "a dog", LONG):
        ids = [
            tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt").input_ids
            for tokenizer in (pipeline.tokenizer, getattr(pipeline, "tokenizer_2", pipeline.tokenizer))
        ]
        assert torch.equal(family.tokenize([prompt])[0], torch.cat(ids[: len(family.text_encoders)]))


def test_a_short_prompt_beside_a_long_one_gets_empty_windows(family: Family) -> None:
    both = family.tokenize(["a", LONG], 3)
    assert both.shape == (2, len(family.text_encoders), 3 * (ROOM + 2))
    length = ROOM + 2
    with_empty = torch.cat([family.tokenize(["a"]), family.tokenize([""]), family.tokenize([""])], dim=2)
    assert torch.equal(both[:1], with_empty)
    assert torch.equal(both[:, :, :length], family.tokenize(["a", LONG]))


def test_long_prompts_are_drawn_whole(family: Family) -> None:
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))

    def draw(prompt: str, negative: str = "") -> np.ndarray:
        return np.asarray(family.draw([prompt], [negative], noise, 2, 4.0)[0])

    window = " ".join("abcdefghijklmnopqrstuv")
    longer = f"{window} w x y"
    assert torch.equal(family.tokenize([window]), family.tokenize([longer])), "the first windows are the same"
    assert not np.array_equal(draw(longer), draw(window))
    assert not np.array_equal(draw("a", longer), draw("a", window))


# new words


def test_a_new_word_with_the_vectors_of_others_is_those(family: Family) -> None:
    """In all that is computed from it, the pooled text included."""
    family.add_word("<new>", family.embed("bcd"))
    family.add_word("Second", family.embed("x"))
    assert same(encode(family, "a <new> e"), encode(family, "a bcd e"))
    assert same(encode(family, "second, <NEW>"), encode(family, "x, bcd"))
    assert family.chunks_of("<new>" * 7) == 1
    assert family.chunks_of("<new>" * 8) == 2, "24 tokens"


def test_diffusers_makes_the_same_of_a_new_word(family: Family, kind: str, models: dict[str, Path]) -> None:
    vectors = random_word(family, 3)
    family.add_word("<new>", vectors)
    pipeline = PIPELINES[kind].from_pretrained(models[kind])
    for part, rows in vectors.items():
        tokenizer = getattr(pipeline, part.replace("text_encoder", "tokenizer"))
        encoder = getattr(pipeline, part)
        pipeline.load_textual_inversion({"<new>": rows}, token="<new>", text_encoder=encoder, tokenizer=tokenizer)
    theirs = encoded_by(pipeline, "a <new> b")
    assert torch.equal(encode(family, "a <new> b").embeddings, theirs)
    assert not torch.equal(encode(family, "a b").embeddings, theirs)


def test_words_that_a_model_brings_along(kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    """As Diffusers saves them: one token for each vector."""
    plain = load_family(models[kind], CPU)
    pipeline = PIPELINES[kind].from_pretrained(models[kind])
    for word, count in (("<three>", 3), ("<one>", 1)):
        for part, rows in random_word(plain, count).items():
            tokenizer = getattr(pipeline, part.replace("text_encoder", "tokenizer"))
            encoder = getattr(pipeline, part)
            pipeline.load_textual_inversion({word: rows}, token=word, text_encoder=encoder, tokenizer=tokenizer)
    pipeline.save_pretrained(tmp_path)
    family = load_family(tmp_path, CPU)
    prompt = "a <three> b <one>"
    assert torch.equal(encode(family, prompt).embeddings, encoded_by(pipeline, prompt))
    assert {len(rows) for rows in family.embed("<three>").values()} == {3}
    assert family.word_known("<one>")
    # and more can be added
    vectors = random_word(family, 2, seed=1)
    family.add_word("<more>", vectors)
    for part, rows in family.embed("<one> <more>").items():
        assert torch.equal(rows[1:], vectors[part])
    with pytest.raises(ValueError, match="is in the vocabulary already"):
        family.add_word("<three>", vectors)


def test_only_the_new_rows_move(family: Family) -> None:
    before = {part: family.vocabulary(part).clone() for part in family.text_encoders}
    used, unused = (family.add_word(word, random_word(family, 2)) for word in ("<used>", "<unused>"))
    first = {part: rows.detach().clone() for part, rows in used.items()}
    cond = family.encode_text(family.tokenize(["a <used> b"]))
    loss = cond.embeddings.square().mean() + (0 if cond.pooled is None else cond.pooled.square().mean())
    loss.backward()
    for part in family.text_encoders:
        trainable = {name for name, value in family.parts[part].named_parameters() if value.requires_grad}
        assert trainable == {f"text_model.embeddings.token_embedding.rows.{index}" for index in (0, 1)}
        assert used[part].grad is not None
        assert used[part].grad.any(dim=1).all(), "each vector"
        # a gradient all the same: processes that draw other captions have the same parameters
        assert unused[part].grad is not None
        assert not unused[part].grad.any()
    optimizer = torch.optim.AdamW([*used.values()], lr=0.1)
    optimizer.step()
    for part in family.text_encoders:
        assert torch.equal(family.vocabulary(part), before[part])
        assert not torch.equal(used[part], first[part])


def test_new_words_are_not_in_the_exported_text_encoder(
    family: Family, kind: str, models: dict[str, Path], tmp_path: Path
) -> None:
    family.add_word("<new>", random_word(family, 2))
    pipeline = family.pipeline()
    copies = {part: copy.deepcopy(family.parts[part]) for part in family.text_encoders}
    pipeline.register_modules(**copies)
    pipeline.save_pretrained(tmp_path)
    for part in family.text_encoders:
        before, after = (load_file(folder / part / "model.safetensors") for folder in (models[kind], tmp_path))
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert same(encode(load_family(tmp_path, CPU), "a"), encode(load_family(models[kind], CPU), "a"))
    assert isinstance(family.parts["text_encoder"].get_input_embeddings(), Vocabulary), "the live one has them still"


def test_a_model_without_new_words_is_the_librarys(family: Family) -> None:
    for part in family.text_encoders:
        assert type(family.parts[part].get_input_embeddings()) is torch.nn.Embedding


def test_what_is_known(family: Family) -> None:
    assert [family.word_known(word) for word in ("a", "A", "<new>", "ab", "", "<|endoftext|>")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip
    family.add_word("<new>", random_word(family, 2))
    assert family.word_known("<new>")
    assert family.word_known("<NEW>")


def test_the_vectors_of_a_text(family: Family) -> None:
    for part, rows in family.embed("bc").items():
        ids = family.tokenize(["bc"])[0, family.text_encoders.index(part), 1:3]
        assert torch.equal(rows, family.vocabulary(part)[ids])
    added = random_word(family, 2)
    family.add_word("<new>", added)
    for part, rows in family.embed("b <new>").items():
        assert torch.equal(rows[1:], added[part])
        rows.zero_()
    for part, rows in family.embed("<new>").items():
        assert torch.equal(rows, added[part]), "a copy"


REFUSED: list[tuple[str, Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = [
    (
        "another width",
        lambda vectors: {part: rows[:, :-1] for part, rows in vectors.items()},
        r"^the vectors of <new> for text_encoder have shape \(2, 23\), but the base model takes \(n, 24\); use an",
    ),
    ("no vectors", lambda vectors: {part: rows[:0] for part, rows in vectors.items()}, r"have shape \(0, 24\)"),
    ("nothing for an encoder", lambda vectors: {}, "^<new> has no vectors for text_encoder, only for nothing; use an"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_vectors_of_another_model_are_refused(
    name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, family: Family
) -> None:
    with pytest.raises(DataError, match=message):
        family.add_word("<new>", change(random_word(family, 2)))
    assert not family.word_known("<new>")


def test_two_encoders_need_vectors_of_the_same_number(models: dict[str, Path]) -> None:
    family = load_family(models["sdxl"], CPU)
    vectors = random_word(family, 2)
    with pytest.raises(DataError, match=r"^<new> has 2 for text_encoder, 1 for text_encoder_2 vectors; all text enc"):
        family.add_word("<new>", vectors | {"text_encoder_2": vectors["text_encoder_2"][:1]})
    with pytest.raises(DataError, match=r"^<new> has no vectors for text_encoder_2, only for text_encoder; use an"):
        family.add_word("<new>", {"text_encoder": vectors["text_encoder"]})
    assert type(family.parts["text_encoder"].get_input_embeddings()) is torch.nn.Embedding, "nothing was changed"


def test_a_word_that_is_known_is_refused(family: Family) -> None:
    family.add_word("<new>", random_word(family, 1))
    for word in ("a", "<new>", "<NEW>", ""):
        with pytest.raises(ValueError, match="is in the vocabulary already"):
            family.add_word(word, random_word(family, 1))


def test_a_text_without_tokens_has_no_vectors(family: Family) -> None:
    with pytest.raises(ConfigurationError, match=r"^“ ” is nothing that the base model's vocabulary can spell"):
        family.embed(" ")
