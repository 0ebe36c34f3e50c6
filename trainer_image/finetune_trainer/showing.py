"""What a run made, for people: pictures, a contact sheet and the reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from finetune_trainer.attempt import Attempt
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.describing import efficiency_of, provenance_of, settings_of
from finetune_trainer.evaluation.contact_sheet import contact_sheet
from finetune_trainer.evaluation.found import Pictures
from finetune_trainer.evaluation.report import ReportData, attempt_rows, render_report
from finetune_trainer.publish.journal import Journal
from finetune_trainer.telemetry.efficiency import Efficiency
from finetune_trainer.training.loop import TrainOutcome

SHOWN_TRAINING_PICTURES = 12


def show_results(
    folder: Path,
    attempt: Attempt,
    pictures: PictureSet,
    device: str,
    outcome: TrainOutcome,
    drawn: Pictures,
    journal: Journal,
    efficiency: Efficiency,
) -> None:
    """Writes pictures/, contact_sheet.png, report.html and data_report.json into `folder`.

    Args:
        pictures: the user's.
        device: what was trained on, for people.
        journal: what is known of earlier attempts.
        efficiency: of this attempt.
    """
    run = attempt.run
    shown = [picture.load() for picture in pictures.pictures[:SHOWN_TRAINING_PICTURES]]
    _save_pictures(folder / "pictures", drawn.before, drawn.after)
    title = f"{run.identity.name}: {run.method.name} of {run.base_model.uri}"
    contact_sheet(title, shown, drawn.prompts, drawn.before, drawn.after).save(folder / "contact_sheet.png")
    report = ReportData(
        title=title,
        method=run.method.name,
        pictures=drawn,
        training_pictures=shown,
        losses=outcome.losses,
        settings=settings_of(run, outcome.total_steps),
        provenance=provenance_of(attempt, pictures, device) | {"Attempts": journal.summary()},
        learning_rates=outcome.learning_rates,
        skipped=outcome.skipped,
        dataset=outcome.data.rows(),
        attempts=attempt_rows(journal.attempts()),
        efficiency=efficiency_of(efficiency),
    )
    (folder / "report.html").write_text(render_report(report), "utf-8")
    (folder / "data_report.json").write_text(outcome.data.to_json(), "utf-8")


def _save_pictures(
    folder: Path, before: Sequence[Sequence[Image.Image]], after: Sequence[Sequence[Image.Image]]
) -> None:
    for when, rows in (("before", before), ("after", after)):
        for prompt, row in enumerate(rows):
            for seed, picture in enumerate(row):
                path = folder / when / f"prompt-{prompt}-seed-{seed}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
