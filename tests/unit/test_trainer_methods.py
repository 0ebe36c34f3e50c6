"""Decisions of the techniques: caption templates, whether a LoRA file fits, the numbering in hypernetwork files."""

from itertools import pairwise

import pytest
import torch
from finetune_api.methods import HypernetworkSpec
from finetune_trainer.builtin.vocabulary import COLOURS, GLUE_WORDS, RARE_WORDS, SHAPES
from finetune_trainer.methods.adapter_fit import scale_of
from finetune_trainer.methods.hypernetwork import ACTIVATIONS, ContextNetwork, HypernetworkMethod
from finetune_trainer.methods.templates import OBJECT, STYLE, templates_for
from finetune_trainer.methods.textual_inversion import keep_length
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn


def test_templates_are_many_and_each_has_one_place_for_the_word() -> None:
    for templates in (OBJECT, STYLE):
        assert len(templates) == len(set(templates)) >= 25
        assert all(template.split().count("{}") == template.count("{") == 1 for template in templates)
    assert all(template.endswith("in the style of {}") for template in STYLE)
    assert "a photo of a {}" in OBJECT


TINY_SHAPES = {*SHAPES, *COLOURS, *GLUE_WORDS, *RARE_WORDS}


@pytest.mark.parametrize(
    ("prop", "vocabulary", "expected"),
    [
        ("Object", {word for template in OBJECT for word in template.split()}, OBJECT),
        ("Style", {word for template in STYLE for word in template.split()}, STYLE),
        ("Object", TINY_SHAPES, ("a photo of a {}",)),
        ("Style", TINY_SHAPES, ("a photo of {}", "{}")),
        ("Object", set(), ("{}",)),
        ("Style", {"a"}, ("{}",)),
    ],
)
def test_templates_keep_to_words_that_the_model_knows(prop: str, vocabulary: set[str], expected: tuple) -> None:
    assert templates_for(prop, vocabulary.__contains__) == expected


@pytest.mark.parametrize(
    ("config", "key", "scale"),
    [
        ({"r": 4, "lora_alpha": 2}, "", 0.5),
        ({"r": 4, "lora_alpha": 2, "use_rslora": True}, "", 1.0),
        ({"r": 4, "lora_alpha": 2, "alpha_pattern": {"a.to_q": 8}}, "a.to_q.lora_B.weight", 2.0),
        ({"r": 4, "lora_alpha": 2, "alpha_pattern": {"a.to_q": 8}}, "a.to_k.lora_B.weight", 0.5),
        ({"r": 4, "lora_alpha": 2, "rank_pattern": {"a.to_q": 16}, "use_rslora": True}, "a.to_q.lora_A.weight", 0.5),
    ],
)
def test_the_scale_of_matrices(config: dict[str, object], key: str, scale: float) -> None:
    assert scale_of(config, key) == scale


@given(st.lists(st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3), min_size=1, max_size=4))
def test_rows_get_their_length_and_keep_their_direction(rows: list[list[float]]) -> None:
    before = torch.tensor(rows)
    after = nn.Parameter(before.clone())
    with torch.no_grad():
        keep_length(2.5, after)
    for old, new in zip(before, after.detach(), strict=True):
        if old.norm() > 1e-6:
            torch.testing.assert_close(new, old * (2.5 / old.norm()), rtol=1e-4, atol=1e-6)
        assert torch.isfinite(new).all()


def as_automatic1111_builds(width: int, settings: dict[str, object]) -> nn.Sequential:
    """By its rules: after each linear layer the activation, unless it is linear or the layer the last one, then the
    normalisation; dropout counts only where the file says so."""
    structure = settings["layer_structure"]
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(structure)):
        layers.append(nn.Linear(int(width * before), int(width * after)))
        if settings["activation_func"] != "linear" and number < len(structure) - 2:
            layers.append(dict(ACTIVATIONS.values())[settings["activation_func"]]())
        if settings["is_layer_norm"]:
            layers.append(nn.LayerNorm(int(width * after)))
    assert settings["use_dropout"] is settings["last_layer_dropout"] is settings["activate_output"] is False
    return nn.Sequential(*layers)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("structure", [(1, 2, 1), (1, 1.5, 2, 1)])
@pytest.mark.parametrize(("norm", "dropout"), [(False, 0.0), (True, 0.0), (False, 0.5), (True, 0.5)])
def test_a_file_without_dropout_says_what_the_training_ended_with(
    activation: str, structure: tuple[float, ...], norm: bool, dropout: float
) -> None:
    spec = HypernetworkSpec(
        prompt="x", layer_structure=structure, activation=activation, layer_norm=norm, dropout=dropout or None
    )
    trained = ContextNetwork(8, structure, activation, norm, dropout)
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    with torch.no_grad():
        for value in trained.parameters():
            value.copy_(torch.randn(value.shape))
    read = as_automatic1111_builds(8, HypernetworkMethod(spec, 0)._settings())
    state: dict[str, Tensor] = trained.without_dropout().state_dict()
    read.load_state_dict({name.removeprefix("linear."): value for name, value in state.items()})
    assert torch.equal(trained.eval()(x), x + read(x))
    drops = not torch.equal(trained.train()(x), trained.eval()(x))
    assert drops is (dropout > 0)


def test_layers_are_numbered_as_in_files() -> None:
    """The golden list for a [1, 2, 1] with an activation, normalisation and dropout."""
    network = ContextNetwork(4, (1, 2, 1), "ReLU", True, 0.1)
    assert {name: tuple(value.shape) for name, value in network.without_dropout().state_dict().items()} == {
        "linear.0.weight": (8, 4),
        "linear.0.bias": (8,),
        "linear.2.weight": (8,),
        "linear.2.bias": (8,),
        "linear.3.weight": (4, 8),
        "linear.3.bias": (4,),
        "linear.4.weight": (4,),
        "linear.4.bias": (4,),
    }
