"""Pictures as the scripts load them: opened, scaled, cropped and made tensors again for each sample.

torchvision's Resize, RandomCrop, CenterCrop, ToTensor and Normalize on PIL pictures are Pillow's resize and crop and a
division by 255; they are written out, so that the benchmark needs no torchvision."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.ImageOps import exif_transpose
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPTokenizer

TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a close-up photo of a {}",
)
REPEATS = 100
"""`--repeats` of textual_inversion.py."""


def transform(picture: Image.Image, size: int) -> Tensor:
    """Shorter side to `size`, a random square of it, float32 [3, size, size] in -1 … 1 (D660-667)."""
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = random.randint(0, width - size), random.randint(0, height - size)  # noqa: S311 - drawn as the scripts draw
    values = torch.from_numpy(np.array(picture.crop((left, top, left + size, top + size)))).permute(2, 0, 1)
    return (values.contiguous().float() / 255 - 0.5) / 0.5


def opened(path: Path) -> Image.Image:
    """D674-678."""
    picture = exif_transpose(Image.open(path))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


class DreamBoothPictures(Dataset[dict[str, Any]]):
    """L572-672, D611-707."""

    def __init__(
        self,
        pictures: Path,
        tokenizer: CLIPTokenizer,
        prompt: str,
        size: int,
        text: Tensor | None,
        classes: Path | None,
        class_prompt: str,
        class_text: Tensor | None,
    ) -> None:
        """`text` and `class_text` are the prompts, encoded in advance (`--pre_compute_text_embeddings`)."""
        self.paths, self.size, self.tokenizer = list(pictures.iterdir()), size, tokenizer
        self.prompt, self.class_prompt = prompt, class_prompt
        self.text, self.class_text = text, class_text
        self.class_paths = list(classes.iterdir()) if classes is not None else []

    def __len__(self) -> int:
        return max(len(self.paths), len(self.class_paths))

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = {"pixels": transform(opened(self.paths[index % len(self.paths)]), self.size)}
        example["ids"] = self.text if self.text is not None else self._tokens(self.prompt)
        if self.class_paths:
            example["class_pixels"] = transform(opened(self.class_paths[index % len(self.class_paths)]), self.size)
            example["class_ids"] = self.class_text if self.class_text is not None else self._tokens(self.class_prompt)
        return example

    def _tokens(self, prompt: str) -> Tensor:
        """D772-786: for each sample anew."""
        length = self.tokenizer.model_max_length
        found = self.tokenizer(prompt, truncation=True, padding="max_length", max_length=length, return_tensors="pt")
        ids: Tensor = found.input_ids
        return ids


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """The user's samples, then the class's (L675-705, D710-742)."""
    pixels = [example["pixels"] for example in examples]
    ids = [example["ids"] for example in examples]
    pixels += [example["class_pixels"] for example in examples if "class_pixels" in example]
    ids += [example["class_ids"] for example in examples if "class_ids" in example]
    return {
        "pixels": torch.stack(pixels).to(memory_format=torch.contiguous_format).float(),
        "ids": torch.cat(ids),
    }


class TextualInversionPictures(Dataset[dict[str, Any]]):
    """T507-590: a template is drawn and tokenized for each sample, and each is mirrored by a coin."""

    def __init__(self, pictures: Path, tokenizer: CLIPTokenizer, placeholder: str, size: int) -> None:
        self.paths, self.tokenizer, self.placeholder, self.size = list(pictures.iterdir()), tokenizer, placeholder, size

    def __len__(self) -> int:
        return len(self.paths) * REPEATS

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = Image.open(self.paths[index % len(self.paths)])
        if picture.mode != "RGB":
            picture = picture.convert("RGB")
        text = random.choice(TEMPLATES).format(self.placeholder)  # noqa: S311 - drawn as the scripts draw
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(text, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        picture = Image.fromarray(np.array(picture).astype(np.uint8))
        picture = picture.resize((self.size, self.size), resample=Image.Resampling.BICUBIC)
        if random.random() < 0.5:  # noqa: S311 - drawn as the scripts draw
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        values = (np.array(picture).astype(np.uint8) / 127.5 - 1.0).astype(np.float32)
        return {"ids": ids.input_ids[0], "pixels": torch.from_numpy(values).permute(2, 0, 1)}
