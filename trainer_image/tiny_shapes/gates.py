"""The four gates that tiny-shapes must pass before anything is tuned on it, and the classifier's own accuracy."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from finetune_trainer.builtin.classifier import Classifier, load_classifier
from finetune_trainer.builtin.vocabulary import COLOURS, PALETTE, RARE_WORDS
from transformers import CLIPTokenizer

from .captions import CAPTION_WORDS, WORDS, all_contents, full_caption
from .diffusion import load_pipeline, paint, tokenize
from .drawing import Pixels, Shape
from .faces import Face, draw_face, random_face
from .judge import accuracy, held_out_set
from .vae import psnr, round_trip

GATES_FILE = "gates.json"
MAX_MEGABYTES = 25.0
MAX_STEP_SECONDS = 0.2
MIN_PSNR = 24.0
MIN_VISIBLE = 0.95
MIN_RIGHT = 0.95
CAPTIONS = 512
FACES = 128


@dataclass(frozen=True)
class Gate:
    """One measured figure and what it must be."""

    name: str
    figure: float
    limit: float
    at_least: bool
    unit: str

    @property
    def met(self) -> bool:
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit


def unseen_faces(count: int, seed: int) -> tuple[Pixels, list[Face]]:
    """Faces with hats in random colours; the VAE's training draws none. Returns uint8 [count, 64, 64, 3]."""
    rng = np.random.default_rng([seed, 40])
    faces = [random_face(rng) for _ in range(count)]
    return np.stack([draw_face(face, rng) for face in faces]), faces


def nearest_colours(pixels: Pixels) -> np.ndarray:
    """Index in COLOURS of each pixel's nearest colour. int [N, H, W]."""
    palette = np.array([PALETTE[name] for name in COLOURS], dtype=np.int32)
    return ((pixels[..., None, :].astype(np.int32) - palette) ** 2).sum(-1).argmin(-1)


def visible_parts(drawn: Pixels, seen: Pixels, faces: list[Face]) -> float:
    """Share of parts (skin, eyes, mouth, hat) of which most pixels still have the part's colour."""
    before, after = nearest_colours(drawn), nearest_colours(seen)
    visible = []
    for index, face in enumerate(faces):
        for colour in (face.skin, face.eyes, face.mouth, face.hat):
            there = before[index] == COLOURS.index(colour)
            visible.append((after[index][there] == COLOURS.index(colour)).mean() > 0.5)
    return float(np.mean(visible))


def measure_vae(vae: AutoencoderKL, seed: int) -> list[Gate]:
    drawn, faces = unseen_faces(FACES, seed)
    seen = round_trip(vae, drawn)
    return [
        Gate("VAE: unseen faces with hats, round trip", psnr(drawn, seen), MIN_PSNR, True, "dB"),
        Gate("VAE: their parts visible", visible_parts(drawn, seen, faces), MIN_VISIBLE, True, "share"),
    ]


def pick_contents(count: int, seed: int) -> list[Shape]:
    """Different things to draw, at random."""
    contents = list(all_contents())
    return [contents[i] for i in np.random.default_rng([seed, 41]).choice(len(contents), count, replace=False)]


def caption_scores(
    pipe: StableDiffusionPipeline, classifier: Classifier, contents: list[Shape], seed: int, steps: int = 25
) -> dict[str, float]:
    """Share of pictures in which the classifier finds what the caption named."""
    verdict = classifier.classify(paint(pipe, [full_caption(content) for content in contents], seed, steps=steps))
    shape = np.array([got == want.shape for got, want in zip(verdict.class_names(), contents, strict=True)])
    colour = np.array([got == want.colour for got, want in zip(verdict.colour_names(), contents, strict=True)])
    background = np.array(
        [got == want.background for got, want in zip(verdict.background_names(), contents, strict=True)]
    )
    return {
        "shape": float(shape.mean()),
        "colour": float(colour.mean()),
        "shape and colour": float((shape & colour).mean()),
        "background": float(background.mean()),
    }


def measure_tokenizer(tokenizer: CLIPTokenizer) -> list[Gate]:
    single = [word for word in WORDS if len(tokenizer.tokenize(word)) == 1]
    unused = [word for word in RARE_WORDS if word in single and word not in CAPTION_WORDS]
    return [
        Gate("tokenizer: words that are one token", len(single) / len(WORDS), 1.0, True, "share"),
        Gate("tokenizer: rare words of one token that no caption uses", len(unused), 9, True, "words"),
    ]


def megabytes(folder: Path) -> float:
    """All files of the model, in 10^6 bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def step_seconds(pipe: StableDiffusionPipeline, repeats: int = 20) -> float:
    """Time of a UNet training step at batch 4 in fp32 on 2 threads (forward, backward, AdamW).

    The fastest of some: other work on the machine only ever adds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    unet = pipe.unet.float().train().requires_grad_(True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=0.0)
    side = unet.config.sample_size
    noisy = torch.randn(4, unet.config.in_channels, side, side)
    with torch.no_grad():
        words = pipe.text_encoder(tokenize(pipe.tokenizer, ["a red circle"] * 4).cpu()).last_hidden_state
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        unet(noisy, torch.randint(0, 1000, (4,)), words).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    unet.eval().requires_grad_(False)
    return min(times)


def measure(folder: Path, seed: int) -> tuple[list[Gate], dict[str, dict[str, float]]]:
    """All gates, and figures beside them: captions by what was named, the classifier on held-out drawings."""
    pipe = load_pipeline(folder)
    classifier = load_classifier(folder / "classifier")
    captions = caption_scores(pipe, classifier, pick_contents(CAPTIONS, seed), seed)
    truth, pixels = held_out_set(pipe.vae, seed)
    gates = [
        *measure_vae(pipe.vae, seed),
        Gate(f"{CAPTIONS} captions: shape and colour right", captions["shape and colour"], MIN_RIGHT, True, "share"),
        *measure_tokenizer(pipe.tokenizer),
        Gate("all files", megabytes(folder), MAX_MEGABYTES, False, "MB"),
        Gate("training step, batch 4, fp32, 2 threads", step_seconds(pipe), MAX_STEP_SECONDS, False, "s"),
    ]
    return gates, {
        "captions": captions,
        "classifier on held-out drawings": accuracy(classifier.classify(pixels), truth),
    }


def write_gates(folder: Path, gates: list[Gate], figures: dict[str, dict[str, float]], seed: int) -> None:
    """Writes gates.json beside the model."""
    record = {
        "seed": seed,
        "gates": [{**asdict(gate), "figure": round(gate.figure, 4), "met": gate.met} for gate in gates],
        "figures": {name: {key: round(value, 4) for key, value in row.items()} for name, row in figures.items()},
    }
    (folder / GATES_FILE).write_text(json.dumps(record, indent=2) + "\n")
