"""Each technique on builtin://tiny-shapes, a model that draws, predicts the velocity and ends in pure noise: the losses
of the reference, and pinned."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from finetune_trainer.sources.builtin import open_builtin
from support import method_reference as plain
from support.training import make_run, train_once

FIGURE = Path(__file__).parents[2] / "examples/subjects/figure"
SUBJECT = "a photo of a sks circle"
STEPS, BATCH, TEXT_RATE = 4, 2, 0.0001
ATTENTION, CONVOLUTION = (
    ("to_q", "to_k", "to_v", "to_out.0"),
    ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv"),
)
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
BLEND = {"placeholder": "<blend>", "vectors": 3, "initializer": "cyan circle"}

RATES = {"dreamBooth": 0.0001, "lora": 0.001, "dora": 0.001, "word": 0.005, "hypernetwork": 0.0003, "pivotal": 0.001}
METHODS: dict[str, Mapping[str, object]] = {
    "dreamBooth": {
        "dreamBooth": {"prompt": SUBJECT, "trainTextEncoder": True, "textEncoderLearningRate": TEXT_RATE / 10}
    },
    "lora": {"lora": {"prompt": SUBJECT, "trainTextEncoder": True, "textEncoderLearningRate": TEXT_RATE}},
    "dora": {
        "lora": {"prompt": SUBJECT, "rank": 8, "alpha": 4, "targets": ["attention", "convolution"], "useDora": True}
    },
    # two templates have nothing but words that the model knows
    "word": {"textualInversion": {"tokens": [BLEND], "property": "Style"}},
    "hypernetwork": {"hypernetwork": {"prompt": SUBJECT, "activation": "Swish"}},
    "pivotal": {"lora": {"prompt": "a photo of a <blend>", "tokens": [BLEND]}},
}


def words(reference: plain.Reference) -> None:
    cyan, circle = reference.tokens("cyan circle")[0, 0, 1:3].tolist()
    plain.new_words(reference, lambda table: table[[cyan, circle, cyan]], keep=True)


def dora(reference: plain.Reference) -> None:
    plain.low_rank(reference, 8, 0.5, (*ATTENTION, *CONVOLUTION, "upsamplers.0.conv"), (), dora=True, rate=0)


def pivotal(reference: plain.Reference) -> None:
    plain.low_rank(reference, 16, 1, ATTENTION, (), dora=False, rate=0)
    words(reference)


# AUTOMATIC1111's swish is Hardswish, and its networks act on every context of their width: here on that of the
# self-attention too, which is as wide as the text
BUILD: dict[str, Callable[[plain.Reference], None]] = {
    "dreamBooth": lambda reference: plain.whole(reference, TEXT_RATE / 10),
    "lora": lambda reference: plain.low_rank(reference, 16, 1, ATTENTION, TEXT_ATTENTION, dora=False, rate=TEXT_RATE),
    "dora": dora,
    "word": words,
    "hypernetwork": lambda reference: plain.hypernetworks(reference, (1, 2, 1), F.hardswish, False, {128}),
    "pivotal": pivotal,
}
# before the new words, where there are any
CAPTIONS = {"word": ["a photo of", ""], "pivotal": ["a photo of a"]}
PINNED: dict[str, list[float]] = {
    "dreamBooth": [1.005369, 0.280703, 0.272635, 0.51755],
    "lora": [1.005369, 0.292463, 0.29769, 0.768291],
    "dora": [1.005369, 0.290186, 0.2936, 0.71011],
    "word": [1.00083, 0.870884, 0.302643, 0.761898],
    "hypernetwork": [1.005653, 0.293441, 0.299726, 0.790045],
    "pivotal": [1.092839, 0.409779, 0.446027, 0.89621],
}


@pytest.mark.parametrize("case", METHODS)
def test_losses_are_those_of_the_reference_and_stay_so(case: str, tmp_path: Path) -> None:
    model = open_builtin("builtin://tiny-shapes")
    training = {"steps": STEPS, "batchSize": BATCH, "learningRate": RATES[case]}
    (technique,) = METHODS[case]
    _, outcome = train_once(make_run(technique, method=dict(METHODS[case]), training=training), model, FIGURE, tmp_path)
    reference = plain.Reference(model, CAPTIONS.get(case, [SUBJECT]))
    BUILD[case](reference)
    expected = plain.losses_of(reference, FIGURE, STEPS, BATCH, RATES[case])
    np.testing.assert_allclose(outcome.losses, expected, rtol=2e-5)
    np.testing.assert_allclose(outcome.losses, PINNED[case], rtol=2e-4)
