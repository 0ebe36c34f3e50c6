"""What each figure means, in words for the report."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.evaluation.intervals import Figure


@dataclass(frozen=True)
class Meaning:
    """A figure explained."""

    title: str
    by_classifier: str
    """What is measured where a classifier has a name for what was trained."""
    by_encoder: str
    """What is measured where only features are compared; empty where that cannot be."""
    better: str
    """"higher", "lower", or "" where neither is better as such."""


MEANINGS: dict[str, Meaning] = {
    "fidelity": Meaning(
        "Subject fidelity",
        "share of pictures for prompts with the rare word that show the subject; where prompts name backgrounds that "
        "no training picture has, of those alone",
        "mean cosine between pictures for prompts with the rare word and the training pictures",
        "higher",
    ),
    "promptFidelity": Meaning(
        "Prompt fidelity",
        "share of pictures of the subject whose background is the one that the prompt names",
        "mean cosine between pictures of the subject and their prompt without the rare word (CLIP-T)",
        "higher",
    ),
    "diversity": Meaning(
        "Diversity",
        "mean distance between two pictures of one prompt with the rare word",
        "mean distance between two pictures of one prompt with the rare word",
        "higher",
    ),
    "leak": Meaning(
        "Leak",
        "share of pictures for the class without the rare word that show the subject all the same",
        "mean cosine between pictures for the class without the rare word and the training pictures, minus the base "
        "model's own for the same seeds",
        "lower",
    ),
    "classAccuracy": Meaning(
        "Class accuracy", "share of pictures for the class that show it as the prompt names it", "", "higher"
    ),
    "drift": Meaning(
        "Drift",
        "mean distance between a picture for the class and the base model's for the same seed",
        "mean distance between a picture for the class and the base model's for the same seed",
        "lower",
    ),
    "otherLeak": Meaning(
        "Leak into other prompts",
        "share of pictures for prompts that name neither subject nor class that show the subject",
        "as leak, for prompts that name neither subject nor class",
        "lower",
    ),
    "otherAccuracy": Meaning(
        "Accuracy of other prompts", "share of their pictures that show everything the prompt names", "", "higher"
    ),
    "otherDrift": Meaning(
        "Drift of other prompts", "as drift, for other prompts", "as drift, for other prompts", "lower"
    ),
    "nearestDistance": Meaning(
        "Distance to the nearest training picture",
        "mean over pictures for prompts with the rare word",
        "mean over pictures for prompts with the rare word",
        "",
    ),
    "nearCopies": Meaning(
        "Near-copies",
        "share of pictures for prompts with the rare word that are nearer to a training picture than half the distance "
        "of the two nearest training pictures (memorisation)",
        "share of pictures for prompts with the rare word that are nearer to a training picture than half the distance "
        "of the two nearest training pictures (memorisation)",
        "lower",
    ),
    "validationLoss": Meaning(
        "Validation loss",
        "loss with fixed noise on pictures that were held out of the training",
        "loss with fixed noise on pictures that were held out of the training",
        "lower",
    ),
    "trainingLoss": Meaning(
        "Loss on the training pictures",
        "loss with fixed noise, on the training pictures: with fewer than 20 none is held out. It falls too when they "
        "are learned by heart",
        "loss with fixed noise, on the training pictures: with fewer than 20 none is held out. It falls too when they "
        "are learned by heart",
        "",
    ),
    "classLoss": Meaning(
        "Loss on class pictures",
        "loss with fixed noise on the class pictures of prior preservation",
        "loss with fixed noise on the class pictures of prior preservation",
        "lower",
    ),
}
FIGURES = tuple(MEANINGS)
"""The names of all figures there are: in metrics, status and manifest too."""
SHARES = frozenset({"nearCopies", "classAccuracy", "otherAccuracy"})
"""Always shares of pictures."""
SHARES_OF_A_CLASSIFIER = frozenset({"fidelity", "promptFidelity", "leak", "otherLeak"})


def in_words(name: str, figure: Figure, by_classifier: bool) -> tuple[str, str]:
    """(value, 95 % interval) of a figure: shares in percent, the rest as decimals."""
    percent = name in SHARES or (by_classifier and name in SHARES_OF_A_CLASSIFIER)
    show = "{:.0%}" if percent else "{:.3f}"
    return show.format(figure.value), f"{show.format(figure.low)} to {show.format(figure.high)}"
