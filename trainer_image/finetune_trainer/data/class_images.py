"""Class pictures for prior preservation: drawn by the base model itself before it is trained, kept for later runs.

Picture i depends on the key and on i alone: 100 pictures are the first 100 of 200, and a generation that was stopped
goes on where it was. The batch size is not part of the key: its only effect is how sums are rounded, at most one or
two levels of 255 in single pixels, and a picture that is stored is never drawn again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import torch
from finetune_api.methods import ClassImagesSpec, PriorPreservationSpec
from PIL import Image

from finetune_trainer.background import Background
from finetune_trainer.data.disk_cache import DiskCache
from finetune_trainer.data.draw import Purpose, draw
from finetune_trainer.data.whole_files import write_whole
from finetune_trainer.errors import Interrupted
from finetune_trainer.families.base import Family
from finetune_trainer.telemetry.listener import Listener

GENERATOR_VERSION = 1
WHAT = "class pictures"
IN_USE_SECONDS = 24 * 3600.0
"""The pictures of a run are needed by its later attempts too: drawn anew on another machine they might be others, and
a training does not go on with others. So what was used in the last day stays, whatever it takes."""


def class_images_key(family: Family, prior: PriorPreservationSpec, seed: int, resolution: int) -> dict[str, object]:
    """All that the pictures depend on. Their number and the batch size are not in it."""
    spec = prior.class_images or ClassImagesSpec()
    return {
        "generator": GENERATOR_VERSION,
        "model": family.digest,
        "prompt": prior.class_prompt,
        "negativePrompt": spec.negative_prompt,
        "sampler": dict(family.sampler),
        "inferenceSteps": spec.inference_steps,
        "guidanceScale": spec.guidance_scale,
        "resolution": resolution,
        "seed": seed,
    }


def ensure_class_images(
    family: Family,
    prior: PriorPreservationSpec,
    seed: int,
    resolution: int,
    cache_dir: Path,
    listener: Listener,
    should_stop: Callable[[], bool],
) -> list[Path]:
    """Draws what is missing of the class pictures and returns all, in order.

    Args:
        family: the base model, before a technique is installed.
        resolution: side in pixels.
        cache_dir: pictures are kept in a folder in it that is named after their key. All pictures of a key go together,
            when others need the space.
        should_stop: asked before each batch.

    Raises:
        Interrupted: `should_stop` said so; what was drawn is kept.
        OSError: a picture could not be stored.
    """
    spec = prior.class_images or ClassImagesSpec()
    key = json.dumps(class_images_key(family, prior, seed, resolution), sort_keys=True, indent=1)
    cache = DiskCache(cache_dir / "class-images", in_use_seconds=IN_USE_SECONDS)
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    folder = cache.path(name)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "key.json", lambda file: file.write_text(key))
    cache.touch(name)
    paths = [folder / f"{index:05d}.png" for index in range(spec.count)]
    missing = [index for index, path in enumerate(paths) if not _is_whole(path)]
    side = resolution // family.pixels_per_latent
    shape = (1, family.latent_channels, side, side)
    # packing a picture takes about as long as a step of drawing it; a GPU need not wait for that
    with Background() as background:
        for start in range(0, len(missing), spec.batch_size):
            listener.work(spec.count - len(missing) + start, spec.count, WHAT)
            if should_stop():
                raise Interrupted(
                    f"stopped after {spec.count - len(missing) + start} of {spec.count} {WHAT}; they are kept"
                )
            batch = missing[start : start + spec.batch_size]
            pictures = family.draw(
                [prior.class_prompt] * len(batch),
                [spec.negative_prompt] * len(batch),
                torch.cat([draw(seed, Purpose.CLASS_PICTURE, 0, index).noise(shape) for index in batch]),
                spec.inference_steps,
                spec.guidance_scale,
            )
            # those of the batch before: no more than one is kept in memory
            background.finish()
            for index, picture in zip(batch, pictures, strict=True):
                background.submit(partial(_store, paths[index], picture), Future.result)
    cache.sweep()
    listener.work(spec.count, spec.count, WHAT)
    return paths


def _is_whole(path: Path) -> bool:
    """Whether the picture is there, and as it was written: PNG has a checksum for each of its parts. One that a disk
    has spoilt is drawn again; who trains has no way to repair it."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            picture.verify()
    except Exception:  # Pillow raises what it likes about a damaged file
        return False
    return True


def _store(path: Path, picture: Image.Image) -> None:
    write_whole(path, partial(picture.save, format="PNG"))
