"""generation.json and the contact sheets, made of what is stored: what they name is there, with this content."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

from finetune_api.progress import Sha256
from PIL import Image

from finetune_trainer.errors import DataError, Interrupted
from finetune_trainer.generation.plan import Picture, Recipe
from finetune_trainer.generation.sheets import Print, pages, sheet
from finetune_trainer.publish.manifest import ManifestModel, library_versions
from finetune_trainer.publish.store import Store

RECORD = "generation.json"


class RecordedPicture(ManifestModel):
    """One picture."""

    path: str
    """Relative to the output."""
    prompt: str
    seed: int
    sha256: Sha256
    """Of the file."""


class Source(ManifestModel):
    """What the pictures were drawn with."""

    name: str
    """For people."""
    uri: str | None = None
    """Where it was read from; none for pictures that a run draws with what it has just trained."""
    technique: str | None = None
    """None for a base model."""
    base_model: str
    """URI of the base model."""
    base_model_revision: str
    """Commit or digest of the base model."""


class Generation(ManifestModel):
    """The whole file. It stands where all pictures are there."""

    format: Literal["finetune.dev/generation/v1"] = "finetune.dev/generation/v1"
    source: Source
    model_sha256: str
    """SHA-256 that stands for the weights: of a whole pipeline the result's manifest.json, of other results that and
    the base model's digest together, of a base model its digest; in a run, the TrainingRun and the step."""
    negative_prompt: str
    inference_steps: int
    guidance_scale: float
    sampler: dict[str, Any]
    width: int
    height: int
    sheets: tuple[str, ...]
    """Contact sheets, relative to the output."""
    pictures: tuple[RecordedPicture, ...]
    libraries: dict[str, str]
    """Versions of what drew the pictures that were missing last."""


def record(
    store: Store, source: Source, recipe: Recipe, pictures: Sequence[Picture], should_stop: Callable[[], bool]
) -> Generation:
    """Writes the contact sheets and generation.json beside the pictures, which are all there.

    Raises:
        DataError: one of them is not a picture any more.
        Interrupted: `should_stop` said so.
        RunError: the store failed.
    """
    recorded: list[RecordedPicture] = []
    sheets: list[str] = []
    spans = list(pages(len(pictures)))
    for number, span in enumerate(spans, 1):
        prints: list[Print] = []
        for index in span:
            if should_stop():
                raise Interrupted("stopped while the contact sheets were made; the pictures are kept")
            picture = pictures[index]
            data, image = _read(store, picture)
            prints.append(Print.of(picture.prompt, f"seed {picture.seed}", image))
            digest = hashlib.sha256(data).hexdigest()
            recorded.append(RecordedPicture(path=picture.path, prompt=picture.prompt, seed=picture.seed, sha256=digest))
        title = source.name if len(spans) == 1 else f"{source.name}, page {number} of {len(spans)}"
        buffer = io.BytesIO()
        sheet(title, prints).save(buffer, "PNG")
        sheets.append(f"contact_sheet-{number:03d}.png")
        store.put_bytes(sheets[-1], buffer.getvalue())
    generation = Generation(
        source=source,
        model_sha256=recipe.model,
        negative_prompt=recipe.negative_prompt,
        inference_steps=recipe.inference_steps,
        guidance_scale=recipe.guidance_scale,
        sampler=json.loads(json.dumps(dict(recipe.sampler), default=str)),
        width=recipe.width,
        height=recipe.height,
        sheets=tuple(sheets),
        pictures=tuple(recorded),
        libraries=library_versions(),
    )
    text = generation.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n"
    store.put_bytes(RECORD, text.encode())
    return generation


def _read(store: Store, picture: Picture) -> tuple[bytes, Image.Image]:
    data = store.get_bytes(picture.path)
    try:
        image = Image.open(io.BytesIO(data or b""))
        image.load()
    except (OSError, SyntaxError) as error:
        raise DataError(
            f"{store.uri_of(picture.path)} is not a picture any more ({error}); remove it, and the same command draws "
            "it anew"
        ) from error
    return data or b"", image
