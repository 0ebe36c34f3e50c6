"""python -m tiny_shapes: train the base model, check its gates, draw its contact sheet and the example subject."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from finetune_trainer.builtin.classifier import load_classifier, save_classifier
from finetune_trainer.builtin.vocabulary import COLOURS, SHAPES
from PIL import Image
from rich.console import Console
from rich.table import Table

from .captions import full_caption
from .diffusion import STEPS, load_pipeline, paint, pipeline, train_diffusion
from .drawing import Pixels, Shape, pick_colours
from .faces import SUBJECT_BACKGROUNDS, draw_subject_pictures
from .gates import caption_scores, measure, pick_contents, write_gates
from .judge import train_classifier
from .loop import device, join_workers, rank, wait_for_all
from .tokenizer import build_tokenizer
from .vae import train_vae

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
console = Console()

Out = Annotated[Path, typer.Option(help="Where the finished model goes.")]
Work = Annotated[Path, typer.Option(help="Where checkpoints are kept, so that an interrupted run goes on.")]
Model = Annotated[Path, typer.Option(help="A finished model.")]
Seed = Annotated[int, typer.Option(help="Everything is drawn from this.")]


@app.command()
def train(out: Out, work: Work = Path("tiny-shapes-work"), seed: Seed = 0, steps: int = STEPS) -> None:
    """Draws the data and trains VAE, classifier, UNet and text encoder. Run it again to go on where it stopped."""
    diffusers_logging.set_verbosity_error()
    join_workers()
    work.mkdir(parents=True, exist_ok=True)
    if rank() == 0:
        console.print(f"Training on {device()}; checkpoints in {work}, the model goes to {out}.")
    if not (work / "vae").exists():
        trained = train_vae(work, seed)
        if rank() == 0:
            trained.save_pretrained(work / "vae")
        wait_for_all()
    vae = AutoencoderKL.from_pretrained(work / "vae").to(device(), memory_format=torch.channels_last).eval()
    if not (work / "classifier").exists():
        judge = train_classifier(work, vae, seed)
        if rank() == 0:
            save_classifier(judge, work / "classifier")
        wait_for_all()
    classifier = load_classifier(work / "classifier").to(device())
    tokenizer = build_tokenizer()

    def watch(step: int, pipe: StableDiffusionPipeline) -> str:
        if step % 500:
            return "captions are checked every 500 steps"
        scores = caption_scores(pipe, classifier, pick_contents(48, seed + 1), seed, steps=12)
        return ", ".join(f"{name} {share:.0%}" for name, share in scores.items())

    model = train_diffusion(work, vae, tokenizer, seed, steps, watch)
    if rank() == 0:
        finish(pipeline(vae, model.unet, model.text_encoder, tokenizer), work / "classifier", out)
        console.print(f"The model is in {out}. Check it: python -m tiny_shapes gates --model {out}")


def finish(pipe: StableDiffusionPipeline, classifier: Path, out: Path) -> None:
    """Writes the pipeline in float16 and the classifier beside it, readable by all, without this machine's paths."""
    for part in (pipe.vae, pipe.unet, pipe.text_encoder):
        part.to(device="cpu", dtype=torch.float16)
    pipe.vae.register_to_config(_name_or_path="tiny-shapes")
    pipe.save_pretrained(out)
    save_classifier(load_classifier(classifier), out / "classifier")
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)


@app.command()
def gates(model: Model, seed: Seed = 7) -> None:
    """Measures the gates, prints them, writes gates.json beside the model. Exit status 1 where one is not met."""
    diffusers_logging.set_verbosity_error()
    found, figures = measure(model, seed)
    write_gates(model, found, figures, seed)
    table = Table("gate", "figure", "limit", "met")
    for gate in found:
        sign = "≥" if gate.at_least else "≤"
        table.add_row(
            gate.name, f"{gate.figure:.3f} {gate.unit}", f"{sign} {gate.limit:g}", "yes" if gate.met else "NO"
        )
    console.print(table)
    for name, row in figures.items():
        console.print(name, {key: round(value, 4) for key, value in row.items()})
    if not all(gate.met for gate in found):
        raise typer.Exit(1)


@app.command("contact-sheet")
def contact_sheet(model: Model, out: Out, seed: Seed = 7) -> None:
    """Eight shapes in six pairs of colours, each generated from its full caption, as one PNG."""
    diffusers_logging.set_verbosity_error()
    names = pick_colours(np.random.default_rng(seed), len(COLOURS))
    rows = [(names[i], names[(i + 5) % len(names)]) for i in range(6)]
    contents = [Shape(shape, colour, background) for colour, background in rows for shape in SHAPES]
    pipe = load_pipeline(model)
    save_grid(paint(pipe, [full_caption(content) for content in contents], seed, steps=25), len(SHAPES), out)
    console.print(f"Wrote {out}: {'; '.join(f'{colour} on {background}' for colour, background in rows)}.")


def save_grid(pictures: Pixels, columns: int, path: Path) -> None:
    """Pictures [N, S, S, 3] row by row as one PNG, magnified twice."""
    count, side = pictures.shape[:2]
    grid = pictures.reshape(count // columns, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    sheet = Image.fromarray(np.ascontiguousarray(grid).reshape(-1, columns * side, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(path, optimize=True)


@app.command("draw-subject")
def draw_subject_command(out: Out, side: int = 128, seed: Seed = 0) -> None:
    """The example subject's five pictures, one a background colour."""
    out.mkdir(parents=True, exist_ok=True)
    for background, pixels in zip(SUBJECT_BACKGROUNDS, draw_subject_pictures(side, seed), strict=True):
        Image.fromarray(pixels).save(out / f"{background}.png", optimize=True)
    console.print(f"Wrote {len(SUBJECT_BACKGROUNDS)} pictures to {out}.")


if __name__ == "__main__":
    app()
