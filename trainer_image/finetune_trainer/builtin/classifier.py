"""The judge of pictures at 64 px: which shape, in which colour, on which colour, and features for distances."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .vocabulary import CLASSES, COLOURS, IMAGE_SIZE

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


@dataclass(frozen=True)
class Verdict:
    """Probabilities and features for N pictures, float32 on the CPU."""

    classes: Tensor
    """[N, 10], in the order of vocabulary.CLASSES (eight shapes, `subject`, `none`)."""
    colours: Tensor
    """[N, 10], in the order of vocabulary.COLOURS: the shape's colour (means nothing for `subject` and `none`)."""
    backgrounds: Tensor
    """[N, 10], in the order of vocabulary.COLOURS: the background's colour."""
    features: Tensor
    """[N, D], the last layer before the heads: compare pictures by their Euclidean distance."""

    def class_names(self) -> list[str]:
        return [CLASSES[i] for i in self.classes.argmax(1).tolist()]

    def colour_names(self) -> list[str]:
        return [COLOURS[i] for i in self.colours.argmax(1).tolist()]

    def background_names(self) -> list[str]:
        return [COLOURS[i] for i in self.backgrounds.argmax(1).tolist()]


class Classifier(nn.Module):
    """A small convolutional network with three heads over one feature vector."""

    def __init__(self, width: int = 32, features: int = 128) -> None:
        super().__init__()
        self.width, self.features = width, features
        layers: list[nn.Module] = []
        channels = 3
        for factor in (1, 2, 3, 4):
            layers += [
                nn.Conv2d(channels, width * factor, 3, stride=2, padding=1),
                nn.GroupNorm(4, width * factor),
                nn.SiLU(),
                nn.Conv2d(width * factor, width * factor, 3, padding=1),
                nn.SiLU(),
            ]
            channels = width * factor
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 16, features), nn.SiLU())
        self.class_head = nn.Linear(features, len(CLASSES))
        self.colour_head = nn.Linear(features, len(COLOURS))
        self.background_head = nn.Linear(features, len(COLOURS))

    def forward(self, signed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """float [N, 3, 64, 64] in -1..1 to logits of class, colour and background, and features."""
        features = self.trunk(signed)
        return self.class_head(features), self.colour_head(features), self.background_head(features), features

    @torch.no_grad()
    def classify(self, pictures: NDArray[np.uint8] | Tensor, batch: int = 256) -> Verdict:
        """Judges pictures of any side (they are scaled to 64 px).

        Args:
            pictures: uint8 [N, H, W, 3] in 0..255, or a float tensor [N, 3, H, W] in 0..1.
            batch: how many at a time.

        Raises:
            ValueError: the pictures are of another form.
        """
        where = next(self.parameters()).device
        parts = []
        for start in range(0, len(pictures), batch):
            signed = _to_signed(pictures[start : start + batch]).to(where)
            class_logits, colour_logits, background_logits, features = self(signed)
            logits = (class_logits, colour_logits, background_logits)
            parts.append([*(one.softmax(1).cpu() for one in logits), features.cpu()])
        return Verdict(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _to_signed(pictures: NDArray[np.uint8] | Tensor) -> Tensor:
    if isinstance(pictures, np.ndarray):
        pictures = torch.from_numpy(np.ascontiguousarray(pictures))
    if pictures.ndim == 4 and pictures.dtype == torch.uint8 and pictures.shape[3] == 3:
        signed = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    elif pictures.ndim == 4 and pictures.is_floating_point() and pictures.shape[1] == 3:
        signed = pictures.float() * 2 - 1
    else:
        raise ValueError(
            f"pictures: {pictures.dtype} {tuple(pictures.shape)} cannot be judged; "
            "give uint8 [N, H, W, 3] or float [N, 3, H, W] in 0..1"
        )
    if signed.shape[2:] != (IMAGE_SIZE, IMAGE_SIZE):
        signed = nn.functional.interpolate(signed, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
    return signed


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Writes config.json and the weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"width": classifier.width, "features": classifier.features, "classes": CLASSES, "colours": COLOURS}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    state = {name: value.detach().cpu().half().contiguous() for name, value in classifier.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def load_classifier(folder: Path | str) -> Classifier:
    """Reads a classifier in fp32, ready to judge.

    Raises:
        FileNotFoundError: the folder has no classifier.
        ValueError: it was trained on another vocabulary.
    """
    folder = Path(folder)
    config = json.loads((folder / CONFIG).read_text())
    if (tuple(config["classes"]), tuple(config["colours"])) != (CLASSES, COLOURS):
        raise ValueError(f"{folder / CONFIG}: classes or colours are not this version's; train the classifier anew")
    classifier = Classifier(config["width"], config["features"])
    classifier.load_state_dict({name: value.float() for name, value in load_file(folder / WEIGHTS).items()})
    return classifier.eval()
