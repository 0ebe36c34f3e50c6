"""The command `finetune`. Nothing heavy is imported before it is needed: help and errors come at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Fine-tune a text-to-image model on your own pictures, on this machine or in a pod.",
)

File = Annotated[
    Path,
    typer.Argument(
        help="A FineTuneJob in YAML (a FineTuneProfile may follow as a second document), or a TrainingRun in JSON.",
        show_default=False,
    ),
]
ProfileFile = Annotated[
    Path | None,
    typer.Option("--profile", help="A FineTuneProfile in YAML, for its defaults and limits.", show_default=False),
]


@app.command()
def run(
    file: File,
    profile: ProfileFile = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results that are already in output.uri.")
    ] = False,
) -> None:
    """Train, and publish weights, pictures, report and manifest.json to output.uri.

    Stopped with Ctrl-C, the same command goes on where it was. file:// paths may be relative to the current folder:
    file://./pictures.
    """
    from finetune_trainer.launch import launch
    from finetune_trainer.settings import Settings

    raise typer.Exit(launch(file, profile, overwrite, Settings()))


@app.command()
def generate(
    result: Annotated[
        str,
        typer.Argument(
            metavar="RESULT",
            help="What to draw with: the output.uri of a run (a folder or s3://), or for comparison a base model "
            "(builtin://tiny-shapes, hf://owner/name, a folder).",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            "-p",
            help="What to draw; may stand several times. Default: the prompts of the run's validation.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="A text file with one prompt a line; # begins a comment.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100_000, help="Pictures for each prompt.")] = 4,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps.")] = 30,
    guidance: Annotated[
        float,
        typer.Option(min=1, max=50, help="Classifier-free guidance: how closely to follow the prompt; 1 is none."),
    ] = 7.5,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seed of each prompt's first picture; each next adds one.")
    ] = 0,
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Pictures drawn at a time; fewer need less memory.")] = 8,
    negative: Annotated[str, typer.Option(help="What the pictures should not show.", show_default=False)] = "",
    out: Annotated[
        str, typer.Option("--out", "-o", help="Where the pictures go: a folder or s3://bucket/prefix/.")
    ] = "generated",
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            help="Where the run's base model is now, if not where the run had it (a folder, hf://, s3://).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Draw pictures with the results of a run, by the hundred.

    [bold]finetune generate runs/figure -p "a photo of a sks circle" -n 100[/]

    Picture k of each prompt has seed + k: the same command draws the same
    pictures, and what is in --out already is not drawn again. Stopped with
    Ctrl-C, the same command goes on. Each PNG says how it was made, as web UIs
    read it; generation.json lists all of them, and contact sheets show a
    hundred at a time.

    s3:// takes the credentials of your environment, and AWS_ENDPOINT_URL for
    another server than AWS.
    """
    from finetune_trainer.generation import command
    from finetune_trainer.launch import exiting_on_errors
    from finetune_trainer.settings import Settings

    wishes = command.Wishes(
        result=result,
        prompts=prompt or (),
        prompts_file=prompts,
        count=count,
        steps=steps,
        guidance=guidance,
        seed=seed,
        batch_size=batch,
        negative_prompt=negative,
        out=out,
        base_model=base_model,
    )
    with exiting_on_errors():
        command.generate(wishes, Settings())


@app.command()
def compare(
    file: Annotated[
        Path,
        typer.Argument(
            help="FineTuneJobs in YAML, one a document: the same pictures and base model, a technique each.",
            show_default=False,
        ),
    ],
    seeds: Annotated[
        int, typer.Option(min=1, max=100, help="Training seeds for each job; fewer than 5 say little.")
    ] = 5,
    only: Annotated[
        str,
        typer.Option(
            help="Names of jobs or techniques, with commas between; the others are left out.", show_default=False
        ),
    ] = "",
    fidelity: Annotated[
        float, typer.Option(min=0, max=1, help="For the time until it is reached, by the judgements on the way.")
    ] = 0.8,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results, table and pictures.")] = Path(
        "compared"
    ),
) -> None:
    """Train several techniques on the same pictures over several seeds, and print a table.

    [bold]finetune compare examples/compare.yaml[/]

    Size, time, memory and the figures of spec.judgement, with 95 % intervals
    over training seeds, whichever way they fall; a contact sheet; and
    everything as JSON. Each training is measured in a process of its own.
    Stopped with Ctrl-C, the same command begins the training anew that was not
    finished, and no other.
    """
    from finetune_trainer.comparison import command
    from finetune_trainer.launch import exiting_on_errors
    from finetune_trainer.settings import Settings

    names = tuple(name.strip() for name in only.split(",") if name.strip())
    with exiting_on_errors():
        command.compare(command.Wishes(file, seeds, names, out, fidelity), Settings())


@app.command()
def validate(file: File, profile: ProfileFile = None) -> None:
    """Check a file, as strictly as the cluster would, and say everything that is wrong with it."""
    from finetune_trainer.launch import exiting_on_errors
    from finetune_trainer.local_run import load_run

    with exiting_on_errors():
        checked = load_run(file, profile)
        typer.echo(f"{file}: {checked.method.name} of {checked.base_model.uri}, nothing is wrong with it")


@app.command()
def render(file: File, profile: ProfileFile = None) -> None:
    """Print the TrainingRun that a job gives: every setting, all defaults filled in."""
    from finetune_trainer.launch import exiting_on_errors
    from finetune_trainer.local_run import load_run

    with exiting_on_errors():
        typer.echo(load_run(file, profile).to_json(), nl=False)


@app.command()
def from_accelerate(
    file: Annotated[
        Path,
        typer.Argument(
            help="What `accelerate config` wrote, YAML or JSON; a DeepSpeed JSON that it names is read too.",
            show_default=False,
        ),
    ],
) -> None:
    """Print spec.engine and spec.training for a configuration of accelerate."""
    from finetune_trainer.from_accelerate.files import spec_of
    from finetune_trainer.launch import exiting_on_errors

    with exiting_on_errors():
        typer.echo(spec_of(file), nl=False)
