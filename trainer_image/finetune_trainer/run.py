"""A run from top to bottom: look for results, fetch, make, publish. What needs torch is in making.py."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from finetune_api import ExitCode, Result, TrainingRun
from finetune_api.progress import Judgement
from rich.console import Console
from rich.markup import escape

from finetune_trainer.attempt import Attempt, Inputs
from finetune_trainer.credentials import Role, load_credentials
from finetune_trainer.errors import Interrupted
from finetune_trainer.importing import without_collections
from finetune_trainer.paths import shown
from finetune_trainer.publish.journal import Journal
from finetune_trainer.publish.manifest import (
    Manifest,
    ManifestInput,
    ManifestJudgement,
    ManifestTraining,
    library_versions,
)
from finetune_trainer.publish.on_the_way import Exports
from finetune_trainer.publish.store import Store, open_store
from finetune_trainer.publish.transaction import RUN, Published, Transaction
from finetune_trainer.settings import Settings
from finetune_trainer.signals import Stop
from finetune_trainer.sources import fetch_encoder, fetch_model, fetch_pictures
from finetune_trainer.sources.files import fetch_files
from finetune_trainer.telemetry.listener import Listener, Listeners

if TYPE_CHECKING:
    from finetune_trainer.making import Made


SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Finished:
    """A run whose manifest is published, now or by an earlier attempt."""

    result: Result
    published: Published
    store: Store
    again: bool

    def show(self, console: Console, file: Path) -> None:
        """Says where everything is."""
        if self.again:
            console.print(f"This run is done already. To run it anew: finetune run --overwrite {escape(str(file))}")
        manifest = self.published.manifest
        prefix = f"attempts/{manifest.attempt}/"
        places = [("weights", path) for path in manifest.weights]
        places += [("report", f"{prefix}report.html"), ("contact sheet", f"{prefix}contact_sheet.png")]
        places += [("manifest", "manifest.json")]
        for name, key in places:
            console.print(f"[green]{name:>14}[/]  {escape(shown(self.store.uri_of(key)))}")


def perform(
    run: TrainingRun,
    digest: str,
    settings: Settings,
    listener: Listener,
    should_stop: Stop,
    overwrite: bool,
) -> Finished:
    """Carries out `run`, or finds that an earlier attempt has.

    `digest` is the SHA-256 of the TrainingRun: another digest means other settings.

    Raises:
        RunError: with the exit code of how it ended.
    """
    store = _output(run, settings)
    transaction = Transaction(store, run.identity.uid, digest, settings.attempt)
    work = settings.work(run.identity.uid)
    if overwrite:
        transaction.clear()
        shutil.rmtree(work, ignore_errors=True)
    published = transaction.published()
    if published is not None:
        transaction.tidy(published)
        return _finished(published, store, again=True)
    transaction.check_writable()
    with Journal(store, run.identity.uid, settings.attempt, settings.pod_name, listener.message) as journal:
        should_stop.last_words.append(lambda: journal.close(ExitCode.INTERRUPTED, "the grace was over"))
        transaction.tidy(None)
        listeners = Listeners([listener, journal])
        inputs = _fetch(run, settings, listeners, should_stop)
        attempt = Attempt(run, digest, inputs, work, store, settings, listeners, should_stop)
        published = _publish(attempt, transaction, journal)
    return _finished(published, store, again=False)


def _publish(attempt: Attempt, transaction: Transaction, journal: Journal) -> Published:
    run, settings, listener = attempt.run, attempt.settings, attempt.listener
    # torch takes seconds to import; whoever is told of a wrong bucket before need not wait for it
    with without_collections():
        from finetune_trainer.making import make

    made = make(attempt, journal)

    listener.stage("Publishing")
    transaction.tidy(None)
    (made.folder / RUN).write_text(run.to_json(), "utf-8")
    files = transaction.upload(made.folder, lambda done, total: listener.work(done, total, "files"))
    exports, exported = Exports(attempt.store, run.identity.uid, attempt.digest, settings.attempt).found(made.steps)
    manifest = Manifest(
        run=run.identity,
        run_sha256=attempt.digest,
        attempt=settings.attempt,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base_model=ManifestInput(uri=run.base_model.uri, revision=attempt.inputs.model.revision),
        dataset=ManifestInput(uri=run.dataset.uri, revision=f"sha256:{made.pictures_sha256}", files=made.picture_count),
        training=_training(made),
        attempts=journal.attempts(),
        judged=made.judgement.for_manifest() if made.judgement is not None else None,
        weights=tuple(transaction.prefix + path for path in made.weights),
        exports=exports,
        files=(*files, *exported),
        libraries=library_versions(),
        settings=run.model_dump(mode="json", by_alias=True, exclude_none=True),
    )
    published = transaction.commit(manifest)
    transaction.tidy(published)
    shutil.rmtree(attempt.work, ignore_errors=True)
    listener.stage("Done")
    return published


def accompany(run: TrainingRun, digest: str, settings: Settings, listener: Listener, should_stop: Stop) -> NoReturn:
    """The part of all processes of a group but rank 0: they train, and stay until rank 0 has published. Then their
    supervisor ends them.

    Raises:
        RunError: with the exit code of how it ended.
    """
    store = _output(run, settings)
    inputs = _fetch(run, settings, listener, should_stop)
    with without_collections():
        from finetune_trainer.making import help_making

    work = settings.work(run.identity.uid)
    help_making(Attempt(run, digest, inputs, work, store, settings, listener, should_stop))
    while not should_stop():
        time.sleep(SECONDS_BETWEEN_LOOKS)
    raise Interrupted("stopped while rank 0 makes pictures of what was trained; the same run goes on from there")


def _output(run: TrainingRun, settings: Settings) -> Store:
    credentials = load_credentials(Role.OUTPUT, run.output.secret_ref, settings.credentials_dir)
    return open_store(run.output.uri, credentials, run.output.storage)


def _fetch(run: TrainingRun, settings: Settings, listener: Listener, should_stop: Callable[[], bool]) -> Inputs:
    listener.stage("Fetching")

    def on_progress(done: int, total: int) -> None:
        listener.work(done, total, "files")
        if should_stop():
            raise Interrupted("stopped while fetching; the same run begins anew")

    folder = settings.credentials_dir
    pictures = fetch_pictures(
        run.dataset, load_credentials(Role.DATASET, run.dataset.secret_ref, folder), settings.cache(), on_progress
    )
    access = load_credentials(Role.BASE_MODEL, run.base_model.secret_ref, folder)
    model = fetch_model(run.base_model, access, settings.cache(), on_progress)
    encoder = None
    if run.judgement is not None:
        encoder = fetch_encoder(run.judgement, run.base_model, access, settings.cache(), on_progress)
    files = fetch_files(
        run.method, load_credentials(Role.OUTPUT, run.output.secret_ref, folder), run.output.storage, settings.cache()
    )
    return Inputs(model, pictures, files, encoder)


def _training(made: Made) -> ManifestTraining:
    return ManifestTraining(
        steps=made.steps, loss=made.loss, resumed_from_step=made.resumed_from_step, device=made.device
    )


def _judgement(judged: ManifestJudgement) -> Judgement:
    figures = {name: figure.value for name, figure in judged.figures.items()}
    return Judgement(step=judged.step, figures=figures, best_step=judged.best_step)


def _finished(published: Published, store: Store, again: bool) -> Finished:
    manifest = published.manifest
    result = Result(
        run_uid=manifest.run.uid,
        outcome="Succeeded",
        step=manifest.training.steps,
        loss=manifest.training.loss,
        resumed_from_step=manifest.training.resumed_from_step,
        uri=store.uri_of(""),
        manifest_uri=store.uri_of("manifest.json"),
        manifest_sha256=published.sha256,
        weights=manifest.weights,
        base_model_revision=manifest.base_model.revision,
        judgement=_judgement(manifest.judged) if manifest.judged is not None else None,
    )
    return Finished(result, published, store, again)
