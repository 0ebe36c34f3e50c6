"""spec.samples: pictures that a run draws with what it has just trained, published beside the weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from finetune_api.outputs import SamplesSpec

from finetune_trainer.errors import Interrupted
from finetune_trainer.evaluation.drawing import BATCH
from finetune_trainer.families.base import Family
from finetune_trainer.generation.drawing import draw_missing, recipe_of
from finetune_trainer.generation.plan import plan
from finetune_trainer.generation.record import Source, record
from finetune_trainer.publish.file_store import FileStore
from finetune_trainer.telemetry.listener import Listener


def draw_samples(
    family: Family,
    spec: SamplesSpec,
    source: Source,
    trained: tuple[str, int],
    folder: Path,
    listener: Listener,
    should_stop: Callable[[], bool],
) -> None:
    """Fills `folder` with pictures, contact sheets and generation.json, as `finetune generate` does; what is there
    from an earlier attempt at the same run is not drawn again.

    Args:
        family: with the trained weights in it.
        source: what the pictures are said to be drawn with.
        trained: digest of the TrainingRun and the step of the weights: they stand for the weights' identity.

    Raises:
        Interrupted: `should_stop` said so; what was drawn is kept.
    """
    listener.stage("Sampling")
    store = FileStore(folder)
    model = hashlib.sha256(json.dumps(trained).encode()).hexdigest()
    recipe = recipe_of(family, model, "", spec.inference_steps, spec.guidance_scale)
    pictures = plan(recipe, spec.prompts, spec.images_per_prompt, spec.seed)
    try:
        draw_missing(
            family,
            recipe,
            pictures,
            source.name,
            store,
            BATCH,
            lambda done, total: listener.work(done, total, "pictures"),
            should_stop,
        )
        record(store, source, recipe, pictures, should_stop)
    except Interrupted as error:
        raise Interrupted(f"{error}; the same run goes on from its last checkpoint") from error
