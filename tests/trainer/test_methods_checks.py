"""What each technique says of itself before it is installed is what it then is; and looking changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetune_trainer.families import load_family
from finetune_trainer.families.windows import words_in
from finetune_trainer.methods import NewWords, NoFiles, make_methods
from support.method_cases import METHODS, run_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("case", METHODS)
def test_a_technique_is_checked_without_a_trace(case: str, tiny_sd: Path) -> None:
    """The pictures before the training are the base model's, bit for bit."""
    family = load_family(tiny_sd, CPU)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))

    def looks() -> tuple[object, ...]:
        (picture,) = family.draw(["a sks dog and a <toy>"], [""], noise, 2, 4.0)
        names = [[name for name, _ in part.named_parameters()] for part in family.parts.values()]
        wanted = [value.requires_grad for part in family.parts.values() for value in part.parameters()]
        return picture.tobytes(), names, wanted, family.tokenize(["a <toy>"]).tolist()

    before = looks()
    methods = make_methods(run_of(case).method, 0)
    for method in methods:
        method.check(family, NoFiles())
    assert looks() == before
    for method in methods:
        method.install(family, NoFiles())
    # but for the picture: a LoRA starts at the base model
    assert looks()[1:] != before[1:]


@pytest.mark.parametrize("case", METHODS)
def test_rates_and_words_are_known_beforehand(case: str, tiny_sd: Path) -> None:
    family = load_family(tiny_sd, CPU)
    for method in make_methods(run_of(case).method, 0):
        groups = method.install(family, NoFiles())
        assert set(method.own_rates) == {group.learning_rate for group in groups} - {None}
        result = method.result()
        assert set(method.words) == (set(result.words) if isinstance(result, NewWords) else set())
        if method.words:
            assert all(words_in(caption, method.words) == set(method.words) for caption in method.captions)
