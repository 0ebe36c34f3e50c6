"""The cases of method_cases as the reference has them, for Stable Diffusion and SDXL."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from support import method_reference as plain
from support.method_cases import TEXT_RATE

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
    plain.hypernetworks(reference, (1, 2, 1), F.mish, True, {reference.unet.config.cross_attention_dim})


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
