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
