"""`finetune generate` from the command line to the exit code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from finetune_trainer.credentials import Role
from finetune_trainer.errors import Interrupted
from finetune_trainer.generation.prompts import gather
from finetune_trainer.generation.record import RECORD, Source, record
from finetune_trainer.generation.sources import Fetched, as_uri, fetch_source, open_place
from finetune_trainer.paths import local_path, make_out, shown
from finetune_trainer.publish.store import Store
from finetune_trainer.settings import Settings
from finetune_trainer.signals import Stop, stop_signals
from finetune_trainer.telemetry.listener import Listener
from finetune_trainer.telemetry.logs import LogListener, configure_logging


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for."""

    result: str
    prompts: Sequence[str]
    prompts_file: Path | None
    count: int
    steps: int
    guidance: float
    seed: int
    batch_size: int
    negative_prompt: str
    out: str
    base_model: str | None


def generate(wishes: Wishes, settings: Settings) -> None:
    """Draws what is missing, writes contact sheets and generation.json, and says where they are.

    Raises:
        RunError: with the exit code of how it ended.
    """
    configure_logging(settings.log_format)
    stop = Stop()
    with ExitStack() as stack:
        listener = stack.enter_context(_listening(settings))
        stack.enter_context(
            stop_signals(stop, lambda: listener.message("Stopping after this batch"), on_last_call=lambda: None)
        )
        try:
            out, sheets, drawn, total = _generate(wishes, settings, listener, stop)
        except Interrupted as error:
            raise Interrupted(f"{error}; the same command goes on") from error
        listener.stage("Done")
    console = Console(soft_wrap=True, highlight=False)
    if drawn < total:
        console.print(f"{total - drawn} of {total} pictures were there already")
    console.print(f"[green]{'pictures':>14}[/]  {escape(shown(out.uri_of('pictures/')))}")
    for sheet in sheets:
        console.print(f"[green]{'contact sheet':>14}[/]  {escape(shown(out.uri_of(sheet)))}")
    console.print(f"[green]{'record':>14}[/]  {escape(shown(out.uri_of(RECORD)))}")


def _generate(
    wishes: Wishes, settings: Settings, listener: Listener, stop: Stop
) -> tuple[Store, tuple[str, ...], int, int]:
    if wishes.prompts_file is not None:
        gather(wishes.prompts, wishes.prompts_file, None)  # a wrong file shows before anything is fetched
    out = _open_output(wishes.out, settings)
    listener.stage("Fetching")

    def fetched_so_far(done: int, total: int) -> None:
        listener.work(done, total, "files")
        if stop():
            raise Interrupted("stopped while fetching")

    fetched = fetch_source(wishes.result, wishes.base_model, settings, fetched_so_far)
    run = fetched.results.run if fetched.results is not None else None
    prompts = gather(wishes.prompts, wishes.prompts_file, run)

    # torch takes seconds to import; whoever is told of a wrong path above need not wait for it
    from finetune_trainer.device import device_of
    from finetune_trainer.generation.drawing import draw_missing, recipe_of
    from finetune_trainer.generation.loading import load_drawable
    from finetune_trainer.generation.plan import identity_of, plan

    listener.stage("Preparing")
    family = load_drawable(fetched, device_of(None))
    manifest = fetched.results.sha256 if fetched.results is not None else None
    identity = identity_of(manifest, family.digest if fetched.base is not None else None)
    recipe = recipe_of(family, identity, wishes.negative_prompt, wishes.steps, wishes.guidance)
    pictures = plan(recipe, prompts, wishes.count, wishes.seed)
    listener.stage("Sampling")
    drawn = draw_missing(
        family,
        recipe,
        pictures,
        fetched.name,
        out,
        wishes.batch_size,
        lambda done, total: listener.work(done, total, "pictures"),
        stop,
    )
    generation = record(out, _source(fetched), recipe, pictures, stop)
    return out, generation.sheets, drawn, len(pictures)


def _source(fetched: Fetched) -> Source:
    return Source(
        name=fetched.name,
        uri=fetched.uri,
        technique=fetched.results.run.method.name if fetched.results is not None else None,
        base_model=fetched.base_uri,
        base_model_revision=fetched.base_revision,
    )


def _open_output(place: str, settings: Settings) -> Store:
    uri = as_uri(place)
    path = local_path(uri, Role.OUTPUT)
    if path is not None:
        make_out(place, path)
    return open_place(uri, settings)


@contextmanager
def _listening(settings: Settings) -> Iterator[Listener]:
    console = Console(stderr=True)
    if settings.log_format == "text" and console.is_terminal:
        from finetune_trainer.telemetry.progress_bar import ProgressBar

        with ProgressBar(console) as bar:
            yield bar
    else:
        yield LogListener()
