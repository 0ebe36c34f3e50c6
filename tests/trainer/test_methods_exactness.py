"""Each technique does what its paper says, to the last digits: beside pinned losses stands a second implementation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import method_reference as plain
from support.method_cases import METHODS, RATE, TEXT_RATE, run_of
from support.training import train_once

STEPS, BATCH = 6, 2
ATTENTION, FEED_FORWARD = ("to_q", "to_k", "to_v", "to_out.0"), ("ff.net.0.proj", "ff.net.2")
CONVOLUTION = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv")
TEXT_ATTENTION, TEXT_FEED_FORWARD = ("q_proj", "k_proj", "v_proj", "out_proj"), ("mlp.fc1", "mlp.fc2")

Build = Callable[[plain.Reference], None]


def dreambooth(reference: plain.Reference) -> None:
    plain.whole(reference, TEXT_RATE)


def lora_of_text(reference: plain.Reference) -> None:
    ends, text_ends = ATTENTION + FEED_FORWARD, TEXT_ATTENTION + TEXT_FEED_FORWARD
    plain.low_rank(reference, 4, 2 / 4, ends, text_ends, dora=False, rate=TEXT_RATE)


def dora(reference: plain.Reference) -> None:
    plain.low_rank(reference, 4, 3 / 4**0.5, ATTENTION + CONVOLUTION, (), dora=True, rate=TEXT_RATE)


def of_words(reference: plain.Reference) -> Callable[[torch.Tensor], torch.Tensor]:
    d, o = reference.tokens("d o")[0, 0, 1:3].tolist()
    return lambda table: table[[d, o, d]]


def words(reference: plain.Reference) -> None:
    plain.new_words(reference, of_words(reference), keep=True)


def mean_word(reference: plain.Reference) -> None:
    plain.new_words(reference, lambda table: table.mean(0, keepdim=True).repeat(2, 1), keep=False)


def hypernetwork(reference: plain.Reference) -> None:
    plain.hypernetworks(reference, (1, 2, 1), F.mish, True, {24})


def linear_hypernetwork(reference: plain.Reference) -> None:
    plain.hypernetworks(reference, (1, 0.5, 2, 1), None, False, {16, 24, 32} & widths(reference))


def widths(reference: plain.Reference) -> set[int]:
    return {m.to_k.in_features for m in reference.unet.modules() if hasattr(m, "to_k")}


def pivotal(reference: plain.Reference) -> None:
    plain.low_rank(reference, 4, 1, ATTENTION, TEXT_ATTENTION, dora=False, rate=TEXT_RATE)
    plain.new_words(reference, of_words(reference), keep=True)


BUILD: dict[str, Build] = {
    "dreamBooth": dreambooth,
    "lora": lora_of_text,
    "dora": dora,
    "words": words,
    "mean word": mean_word,
    "hypernetwork": hypernetwork,
    "linear hypernetwork": linear_hypernetwork,
    "pivotal": pivotal,
}

# what comes before the new words, which are no token of the tokenizer's; no word of the templates is in the tiny
# vocabulary, and so the word stands alone
CAPTIONS = {"words": "", "mean word": "", "pivotal": "a"}

PINNED = {
    "dreamBooth": [1.037366, 1.056883, 0.825464, 0.876575, 0.969884, 0.782994],
    "lora": [1.037366, 1.051162, 0.959572, 1.045107, 1.046359, 1.076766],
    "dora": [1.037366, 1.026072, 0.918457, 0.9448, 1.017209, 0.92587],
    "words": [1.040173, 1.053662, 0.962623, 1.030112, 1.061084, 1.088478],
    "mean word": [1.04261, 1.056805, 0.960275, 1.032177, 1.060809, 1.090123],
    "hypernetwork": [1.037374, 1.052952, 0.969057, 1.047804, 1.061645, 1.104131],
    "linear hypernetwork": [1.037364, 1.052792, 0.967529, 1.046141, 1.05125, 1.093233],
    "pivotal": [1.042424, 1.052441, 0.954944, 1.031822, 1.048531, 1.067312],
}


@pytest.mark.parametrize("case", METHODS)
def test_losses_are_those_of_the_reference_and_stay_so(
    case: str, tiny_sd: Path, pictures: Path, tmp_path: Path
) -> None:
    _, outcome = train_once(run_of(case, STEPS, BATCH), tiny_sd, pictures, tmp_path)
    reference = plain.Reference(tiny_sd, [CAPTIONS.get(case, "sks dog")])
    BUILD[case](reference)
    np.testing.assert_allclose(outcome.losses, plain.losses_of(reference, pictures, STEPS, BATCH, RATE), rtol=2e-5)
    np.testing.assert_allclose(outcome.losses, PINNED[case], rtol=2e-4)
