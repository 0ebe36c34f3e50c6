"""Optimizers by name: what they do is what their papers and libraries do, and their state survives a checkpoint."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from finetune_api.engine import EngineSpec
from finetune_api.training_run import ResolvedTraining
from finetune_trainer.engines import Engine, make_engine
from finetune_trainer.engines.adamw_8bit import AdamW8bit, code_table, codebook, dequantise, quantise
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.methods import ParameterGroup
from prodigyopt import Prodigy
from support.toys import Regression, batch_of
from support.training import make_run
from torch import nn
from transformers.optimization import Adafactor

RATES = {"AdamW": 0.01, "AdamW8bit": 0.01, "Adafactor": 0.01, "Prodigy": 1.0}


def training(name: str, **values: object) -> ResolvedTraining:
    return make_run(training={"learningRate": RATES[name], "optimizer": {"name": name}} | values).training


def prepared(module: nn.Module, spec: ResolvedTraining, groups: list[ParameterGroup] | None = None) -> Engine:
    engine = make_engine(EngineSpec(), torch.device("cpu"))
    engine.prepare(module, groups or [ParameterGroup("all", dict(module.named_parameters()))], spec, [])
    return engine


def trained(engine: Engine, first: int, last: int) -> list[float]:
    return [float(engine.step([batch_of(number=step, seed=step)], 1.0).loss) for step in range(first, last)]


@pytest.mark.parametrize(
    ("name", "first", "last"), [("AdamW", 20, 40), ("AdamW8bit", 20, 40), ("Adafactor", 20, 40), ("Prodigy", 60, 140)]
)
def test_each_learns_and_goes_on_from_its_state_to_the_bit(name: str, first: int, last: int) -> None:
    """Prodigy is interrupted while it looks for its rate."""
    module = Regression()
    engine = prepared(module, training(name))
    before = trained(engine, 0, first)
    state = engine.state()
    assert state.optimizer
    losses = trained(engine, first, last)
    assert losses[-1] < 0.8 * before[0]

    resumed = Regression()
    again = prepared(resumed, training(name))
    again.load(state)
    assert again.state().optimizer.keys() == state.optimizer.keys()
    assert all(torch.equal(value, state.optimizer[key]) for key, value in again.state().optimizer.items())
    assert trained(again, first, last) == losses
    for one, other in zip(module.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("AdamW", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01, foreach=False)),
        ("Adafactor", lambda p: Adafactor(p, lr=0.01, weight_decay=0.01, relative_step=False, scale_parameter=False)),
        (
            "Prodigy",
            lambda p: Prodigy(p, lr=1.0, weight_decay=0.01, use_bias_correction=True, safeguard_warmup=True),
        ),
    ],
)
def test_each_is_what_its_library_does(name: str, reference: object) -> None:
    ours, theirs = Regression(), Regression()
    losses = trained(prepared(ours, training(name, maxGradNorm=1000)), 0, 10)
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = reference(list(theirs.parameters()))  # type: ignore[operator]  # one of the lambdas above
    expected = []
    for step in range(10):
        loss, _ = theirs(batch_of(number=step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_the_eight_bit_one_learns_as_the_exact_one_does() -> None:
    """Its moments are coarse, and that is all: losses stay within a few percent over 200 steps."""
    exact, coarse = Regression(), Regression()
    theirs = trained(prepared(exact, training("AdamW")), 0, 200)
    engine = prepared(coarse, training("AdamW8bit"))
    ours = trained(engine, 0, 200)
    assert theirs[-1] < 0.05 * theirs[0]
    np.testing.assert_allclose(ours[:5], theirs[:5], rtol=1e-3)
    np.testing.assert_allclose(np.mean(ours[-20:]), np.mean(theirs[-20:]), rtol=0.1)
    state = engine.state().optimizer
    assert (state["first/first"].dtype, state["first/root"].dtype) == (torch.uint8, torch.uint8)
    moments = [value.nbytes for key, value in state.items() if key.startswith("first/")]
    assert sum(moments) < 2.05 * exact.first.numel(), "two bytes a parameter in place of eight"
    assert state["second/first"].dtype == torch.float32, "2,048 numbers are not worth it"


def test_small_parameters_of_the_eight_bit_one_move_as_exactly_as_others() -> None:
    values = torch.linspace(-1, 1, 40)
    ours, theirs = (nn.Parameter(values.clone()) for _ in range(2))
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    eight, exact = AdamW8bit([{"params": [ours]}], **settings), torch.optim.AdamW([theirs], **settings)
    for step in range(1, 8):
        for parameter, optimizer in ((ours, eight), (theirs, exact)):
            (parameter * step - 1).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("signed", [True, False])
def test_what_a_byte_can_mean(signed: bool) -> None:
    book = codebook(signed)
    assert book.shape == (256,)
    assert (book.diff() > 0).all()
    assert book[-1] == 1.0
    assert (0.0 in book) == signed, "nothing is ever divided by a zero that was none"
    values = torch.logspace(-6, 3, 1000).view(10, 100) * (torch.tensor([1.0, -1.0]).repeat(50) if signed else 1.0)
    codes, scale = quantise(values, code_table(book))
    assert codes.shape == (4, 256)
    back = dequantise(codes, scale, book, values.shape)
    large = values.abs() > 0.1 * values.abs().max()
    assert (back - values)[large].abs().max() <= 0.01 * values.abs().max()
    relative = torch.logspace(-5, 0, 256)
    assert (dequantise(*quantise(relative, code_table(book)), book, relative.shape) / relative - 1).abs().max() < 0.5


def test_what_is_all_zeros_stays_so() -> None:
    for book in (codebook(True), codebook(False)):
        zeros = torch.zeros(300)
        assert torch.equal(dequantise(*quantise(zeros, code_table(book)), book, zeros.shape), zeros)


def test_a_group_has_a_rate_a_decay_and_a_constraint_of_its_own() -> None:
    one, other, held = (nn.Parameter(torch.full((4,), 2.0)) for _ in range(3))

    class Still(nn.Module):
        """Gradients of nothing, so that only decay moves the weights."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.held = one, other, held

        def forward(self, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
            loss = 0.0 * (one + other + held).sum()
            return loss, loss[None]

    def unit(parameter: nn.Parameter) -> None:
        parameter.div_(parameter.norm())

    groups = [
        ParameterGroup("one", {"one": one}),
        ParameterGroup("other", {"other": other}, learning_rate=0.5, weight_decay=0.1),
        ParameterGroup("held", {"held": held}, weight_decay=0.0, constraint=unit),
    ]
    spec = training("AdamW", optimizer={"name": "AdamW", "weightDecay": 1.0})
    prepared(Still(), spec, groups).step([batch_of()], 0.5)
    torch.testing.assert_close(one.detach(), torch.full((4,), 2 * (1 - 0.005)))
    torch.testing.assert_close(other.detach(), torch.full((4,), 2 * (1 - 0.25 * 0.1)))
    assert held.tolist() == [0.5] * 4


def test_prodigy_says_the_rate_that_it_found_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    engine = prepared(Regression(), training("Prodigy"))
    rates = [engine.step([batch_of(number=step)], 1.0).learning_rate for step in range(100)]
    assert rates[0] == 1e-6
    assert rates == sorted(rates)
    assert rates[-1] > 1000 * rates[0]
    found = engine.state().optimizer["group/0/d"].item()
    assert engine.step([batch_of()], 0.5).learning_rate == 0.5 * found
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("rate", "second", "message"),
    [
        (1e-4, None, r"training\.learningRate is 0\.0001 .* use 1, or remove the field"),
        (1.0, 1e-5, r"textEncoderLearningRate is 1e-05, .* remove the field, or use training\.optimizer\.name AdamW"),
    ],
)
def test_prodigy_refuses_rates_that_it_would_make_nonsense_of(rate: float, second: float | None, message: str) -> None:
    module = Regression()
    groups = [
        ParameterGroup("one", {"first": module.first}),
        ParameterGroup("other", {"second": module.second}, learning_rate=second),
    ]
    with pytest.raises(ConfigurationError, match=message):
        prepared(module, training("Prodigy", learningRate=rate), groups)
