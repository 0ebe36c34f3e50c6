"""Stage 2: the classifier, trained on drawings as the VAE shows them, blurred and noisy."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from finetune_trainer.builtin.classifier import Classifier, Verdict
from finetune_trainer.builtin.vocabulary import CLASSES, COLOURS, NONE, PALETTE, SHAPES, SUBJECT
from torch import Tensor
from torch.nn import functional as F

from .drawing import OVERSAMPLING, Pixels, draw_assembly, draw_shape, pick_colours, random_shape, render
from .faces import SUBJECT_FACE, draw_face, draw_subject, random_face
from .loop import Trainee, batches, device, half_precision, rank, run_stage, share
from .vae import to_pixels, to_signed

SHAPE_COUNT, SUBJECT_COUNT, NONE_COUNT = 12_000, 2_000, 4_000
BATCH = 64
STEPS = 1_500
PEAK_RATE = 1e-3
NOT_NAMED = -100  # cross_entropy leaves such labels out


@dataclass(frozen=True)
class Labelled:
    """uint8 [N, 64, 64, 3] and int64 [N] labels; NOT_NAMED where a picture has none."""

    pixels: Pixels
    classes: Tensor
    colours: Tensor
    backgrounds: Tensor


def draw_labelled(shapes: int, subjects: int, nones: int, seed: int) -> Labelled:
    """Shapes, the subject in many poses, and what is neither: things of parts, other faces, blanks, mixtures."""
    rng = np.random.default_rng([seed, 30])
    pictures: list[Pixels] = []
    labels: list[tuple[int, int, int]] = []
    for _ in range(shapes):
        content = random_shape(rng)
        pictures.append(draw_shape(content, rng))
        labels.append((SHAPES.index(content.shape), COLOURS.index(content.colour), COLOURS.index(content.background)))
    for _ in range(subjects):
        pictures.append(draw_subject(rng))
        labels.append((CLASSES.index(SUBJECT), NOT_NAMED, NOT_NAMED))
    for _ in range(nones):
        pictures.append(_neither(rng))
        labels.append((CLASSES.index(NONE), NOT_NAMED, NOT_NAMED))
    columns = torch.tensor(labels)
    return Labelled(np.stack(pictures), columns[:, 0], columns[:, 1], columns[:, 2])


def _neither(rng: np.random.Generator) -> Pixels:
    kind = rng.random()
    if kind < 0.3:
        return draw_assembly(rng)
    if kind < 0.6:
        face = random_face(rng)
        while (face.skin, face.hat) == (SUBJECT_FACE.skin, SUBJECT_FACE.hat):
            face = random_face(rng)
        return draw_face(face, rng)
    if kind < 0.7:
        return render(PALETTE[pick_colours(rng, 1)[0]], [])
    if kind < 0.85:
        # Coloured clouds: what an unfinished model paints.
        coarse = rng.integers(0, 256, (4 * OVERSAMPLING, 4 * OVERSAMPLING, 3)).astype(np.uint8)
        side = int(rng.choice([2, 4, 8]))
        tiles = np.kron(coarse[:side, :side], np.ones((64 // side, 64 // side, 1), dtype=np.uint8))
        noise = rng.normal(0, rng.uniform(5, 60), tiles.shape)
        return np.clip(tiles + noise, 0, 255).astype(np.uint8)
    # Two shapes over one another.
    one, other = draw_shape(random_shape(rng), rng), draw_shape(random_shape(rng), rng)
    share = rng.uniform(0.35, 0.65)
    return (share * one + (1 - share) * other).astype(np.uint8)


@torch.no_grad()
def as_decoded(vae: AutoencoderKL, pixels: Pixels, seed: int, noise: float = 0.25) -> Pixels:
    """Round trip with up to `noise` deviations of noise on the latents. uint8 [N, 64, 64, 3]."""
    generator = torch.Generator().manual_seed(seed)
    done = []
    for part in batches(len(pixels), 128):
        with half_precision():
            latents = vae.encode(to_signed(pixels[part])).latent_dist.mean.float()
            amount = noise * torch.rand(len(latents), 1, 1, 1, generator=generator)
            latents = latents + (amount * torch.randn(latents.shape, generator=generator)).to(latents.device)
            done.append(to_pixels(vae.decode(latents).sample))
    return np.concatenate(done)


def roughened(signed: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the batches blurred, all with some noise: a generated picture is neither sharp nor clean."""
    if rng.random() < 0.5:
        signed = F.avg_pool2d(F.pad(signed, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return signed + torch.randn_like(signed) * float(rng.uniform(0, 0.2))


def train_classifier(work: Path, vae: AutoencoderKL, seed: int) -> Classifier:
    """Trains the classifier, keeping its checkpoint in work/classifier.pt."""
    torch.manual_seed(seed)
    data = draw_labelled(SHAPE_COUNT, SUBJECT_COUNT, NONE_COUNT, seed + 3)
    decoded = as_decoded(vae, data.pixels, seed + 3)
    held_out, held_out_pixels = held_out_set(vae, seed)
    classifier = Classifier().to(device(), memory_format=torch.channels_last)
    trainee = Trainee.of(classifier, [(list(classifier.parameters()), PEAK_RATE)], ema_decay=0.998)

    def loss_of(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 31, step, rank()])
        chosen = rng.integers(len(data.pixels), size=share(BATCH))
        source = decoded if rng.random() < 0.8 else data.pixels
        torch.manual_seed(int(rng.integers(2**31)))
        signed = roughened(to_signed(source[chosen]), rng)
        with half_precision():
            logits = classifier(signed)
        labels = (data.classes[chosen], data.colours[chosen], data.backgrounds[chosen])
        return sum(
            (F.cross_entropy(one.float(), label.to(one.device)) for one, label in zip(logits, labels, strict=False)),
            torch.zeros(()),
        )

    def watch(_: int) -> str:
        right = accuracy(classifier.classify(held_out_pixels), held_out)
        return ", ".join(f"{name} {share:.1%}" for name, share in right.items())

    run_stage("classifier", trainee, STEPS, loss_of, work / "classifier.pt", watch)
    return classifier


def held_out_set(vae: AutoencoderKL, seed: int) -> tuple[Labelled, Pixels]:
    """1,000 drawings no classifier was trained on, and what the VAE makes of them."""
    held_out = draw_labelled(700, 150, 150, seed + 4)
    return held_out, as_decoded(vae, held_out.pixels, seed + 4)


def accuracy(verdict: Verdict, truth: Labelled) -> dict[str, float]:
    """Shares judged right, among the pictures that have such a label; `subject` is that class's recall."""

    def right(probabilities: Tensor, labels: Tensor) -> float:
        named = labels != NOT_NAMED
        return float((probabilities.argmax(1) == labels)[named].float().mean())

    subject = truth.classes == CLASSES.index(SUBJECT)
    return {
        "class": right(verdict.classes, truth.classes),
        "colour": right(verdict.colours, truth.colours),
        "background": right(verdict.backgrounds, truth.backgrounds),
        "subject": right(verdict.classes[subject], truth.classes[subject]),
    }
