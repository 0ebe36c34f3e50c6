"""What looks at pictures: an encoder from a folder in transformers' layout, or tiny-shapes' own classifier.

DINO, DINOv2 and CLIP are what personalisation is measured with (https://arxiv.org/abs/2208.12242, section 4).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from finetune_trainer.builtin.classifier import Classifier, load_classifier
from finetune_trainer.builtin.vocabulary import PALETTE
from finetune_trainer.errors import DataError, unreadable
from finetune_trainer.evaluation.preprocessing import Preprocessing, read_preprocessing
from finetune_trainer.evaluation.seen import Seen, Verdicts

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

BATCH = 32
FIELD = "spec.judgement.encoderUri"
KINDS = ("clip", "dinov2", "dinov2_with_registers", "vit")


class Encoder(Protocol):
    """Looks at pictures. The same picture always gives the same features, whatever batch it is in."""

    name: str
    """For the report: "dinov2, 384 features"."""

    def see(self, pictures: Sequence[Image.Image]) -> Seen:
        """RGB pictures of any size."""

    def read(self, texts: Sequence[str]) -> NDArray[np.float32] | None:
        """Features of texts in the same space as those of pictures, length 1; None where it cannot read."""


class TinyShapes:
    """The classifier that comes with tiny-shapes."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self.name = f"tiny-shapes' classifier, {classifier.features} features"

    def see(self, pictures: Sequence[Image.Image]) -> Seen:
        # one size, so that pictures of any aspect stand in one array
        rows = [np.asarray(picture.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)) for picture in pictures]
        verdict = self._classifier.classify(np.stack(rows))
        backgrounds = tuple(border_colour(row) for row in rows)
        verdicts = Verdicts(tuple(verdict.class_names()), tuple(verdict.colour_names()), backgrounds)
        return Seen(verdict.features.numpy(), verdicts)

    def read(self, texts: Sequence[str]) -> None:
        return None


class Transformer:
    """CLIP, DINO or DINOv2. Features have length 1, so that the cosine of two pictures is 1 - distance² / 2."""

    def __init__(
        self, name: str, model: nn.Module, tokenizer: CLIPTokenizer | None, preprocessing: Preprocessing
    ) -> None:
        self._model, self._tokenizer, self._preprocessing = model, tokenizer, preprocessing
        self._device = next(model.parameters()).device
        width = int(self.see([Image.new("RGB", (8, 8))]).features.shape[1])
        self.name = f"{name}, {width} features"

    @torch.no_grad()
    def see(self, pictures: Sequence[Image.Image]) -> Seen:
        rows = []
        for start in range(0, len(pictures), BATCH):
            pixels = np.stack([self._preprocessing(picture) for picture in pictures[start : start + BATCH]])
            rows.append(_unit(self._features(torch.from_numpy(pixels).to(self._device))))
        return Seen(np.concatenate(rows))

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> NDArray[np.float32] | None:
        if self._tokenizer is None:
            return None
        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(self._device)
        output = self._model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return _unit(self._model.text_projection(output.pooler_output))

    def _features(self, pixels: Tensor) -> Tensor:
        if self._tokenizer is None:
            # the class token, as DINO's authors compare pictures
            features: Tensor = self._model(pixels).last_hidden_state[:, 0]
            return features
        projected: Tensor = self._model.visual_projection(self._model.vision_model(pixels).pooler_output)
        return projected


def load_encoder(folder: Path, device: torch.device) -> Encoder:
    """The encoder in `folder`: a built-in base model with its classifier, or CLIP, DINO (ViT) or DINOv2 in
    transformers' layout. Reads safetensors and JSON only; nothing in the folder can run code.

    Raises:
        DataError: it is of another kind, or a file is missing or broken.
    """
    if (folder / "classifier" / "config.json").is_file():
        with _explained("the classifier"):
            return TinyShapes(load_classifier(folder / "classifier"))
    with _explained("config.json"):
        config = json.loads((folder / "config.json").read_text("utf-8"))
        kind = config["model_type"]
    if kind not in KINDS:
        raise DataError(
            f"{FIELD}: model_type is {str(kind)[:64]}; encoders are {', '.join(KINDS)}, such as facebook/dinov2-small "
            "or openai/clip-vit-large-patch14"
        )
    if not any(folder.glob("*.safetensors")):
        raise DataError(f"{FIELD}: there is no .safetensors file; choose a model whose weights are there as such")
    with _explained("preprocessor_config.json"):
        preprocessing = read_preprocessing(folder / "preprocessor_config.json")
    with _explained("the model"):
        return Transformer(kind, _model(kind, folder).to(device), _tokenizer(kind, folder), preprocessing)


def border_colour(picture: NDArray[np.uint8]) -> str:
    """The name of the colour that most of the border of uint8 [H, W, 3] is nearest to."""
    edge = np.concatenate([picture[0], picture[-1], picture[1:-1, 0], picture[1:-1, -1]]).astype(np.float32)
    palette = np.array(list(PALETTE.values()), np.float32)
    nearest = np.argmin(((edge[:, None] - palette[None]) ** 2).sum(2), axis=1)
    return list(PALETTE)[int(np.bincount(nearest, minlength=len(palette)).argmax())]


def _model(kind: str, folder: Path) -> nn.Module:
    # a library that takes seconds to import is only imported where it is needed
    from transformers import CLIPModel, Dinov2Model, Dinov2WithRegistersModel, ViTModel

    model_class, more = {
        "clip": (CLIPModel, {}),
        "dinov2": (Dinov2Model, {}),
        "dinov2_with_registers": (Dinov2WithRegistersModel, {}),
        # the pooler of a ViT belongs to its classes, which nobody asks for
        "vit": (ViTModel, {"add_pooling_layer": False}),
    }[kind]
    model, info = model_class.from_pretrained(
        folder,
        torch_dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **more,
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} tensors are missing, such as {missing[0]}")
    whole: nn.Module = model.requires_grad_(False).eval()
    return whole


def _tokenizer(kind: str, folder: Path) -> CLIPTokenizer | None:
    if kind != "clip":
        return None
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _unit(features: Tensor) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = nn.functional.normalize(features.float(), dim=1).cpu().numpy()
    return unit


def _explained(what: str) -> AbstractContextManager[None]:
    """Turns whatever a library raises about a broken file into a DataError that names it."""
    return unreadable(f"{FIELD}: {what}", "fetch it anew or choose another encoder")
