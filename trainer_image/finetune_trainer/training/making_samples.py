"""From what a run asks for to its samples."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from finetune_api import TrainingRun
from finetune_api.dataset import CaptionsSpec, DatasetSpec
from finetune_api.resolve import prior_of

from finetune_trainer.data.buckets import BucketOrder, Shape, bucket_shapes, nearest
from finetune_trainer.data.caption_files import Captioned, listed
from finetune_trainer.data.captions import TOKENS_PER_WINDOW, Captions
from finetune_trainer.data.dataset import Dataset
from finetune_trainer.data.disk_cache import DiskCache
from finetune_trainer.data.draw import Purpose
from finetune_trainer.data.held_out import held_out
from finetune_trainer.data.latents import Crops, Latents
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.data.report import look_at
from finetune_trainer.data.samples import PictureOrder, Samples, Stream
from finetune_trainer.data.text import TextCache
from finetune_trainer.errors import DataError
from finetune_trainer.families.base import Family
from finetune_trainer.families.windows import words_in
from finetune_trainer.group.team import ALONE, Team
from finetune_trainer.methods import Method, needs_of


def make_samples(
    run: TrainingRun,
    family: Family,
    methods: Sequence[Method],
    dataset: Dataset,
    classes: PictureSet,
    cache_dir: Path | None,
    team: Team = ALONE,
) -> Samples:
    """This process's samples of a run: the user's pictures, and class pictures if there are any.

    Args:
        methods: installed, so that the family knows their words.

    Raises:
        DataError: no caption has a word that is to be learned.
        ConfigurationError: no bucket has the sides that are asked for.
    """
    spec, asked, pictures = run.training, run.dataset, dataset.pictures
    held = held_out(run, len(pictures))
    check_words([word for method in methods for word in method.words], dataset.captions, held)
    kept, read = (None if cache_dir is None else DiskCache(cache_dir / name) for name in ("latents", "text"))
    crops = Crops(asked.crops_per_picture, asked.crop == "Random", asked.flip, spec.seed)
    latents = Latents(family, pictures, crops, kept, dataset.masks)
    captions = captions_of(dataset, asked.captions, methods[0].captions)
    instances = Stream(Purpose.INSTANCE, latents, captions)
    prior = prior_of(run.method)
    class_stream = None
    if prior is not None:
        called = Captions.alike([prior.class_prompt], len(classes))
        class_stream = Stream(Purpose.CLASS, Latents(family, classes, Crops(), kept), called, prior.weight)

    shapes = shapes_of(pictures, asked, asked.resolution or family.resolution, crops.count)
    items = items_of(dataset.captions, crops.count, held)
    buckets = [[item for item in items if shapes[item] == shape] for shape in sorted(set(shapes))]
    prompts = captions.all() if prior is None else (*captions.all(), prior.class_prompt)
    windows = windows_for(prompts, asked.captions or CaptionsSpec(), family)
    return Samples(
        family=family,
        instances=instances,
        order=PictureOrder(BucketOrder(spec.seed, buckets, spec.batch_size), shapes),
        classes=class_stream,
        text=TextCache(family, windows, not needs_of(methods).live_text_encoder, read, spec.clip_skip),
        seed=spec.seed,
        batch_size=spec.batch_size,
        accumulation=spec.gradient_accumulation_steps,
        rank=team.rank,
        processes=team.size,
        noise_offset=spec.loss.noise_offset or 0.0,
        digests=dataset.digests,
        report=look_at(
            latents,
            pictures,
            items,
            shapes,
            captions,
            windows,
            family.chunks_of,
            len(classes),
            dataset.masks.opaque if dataset.masks is not None else (),
        ),
    )


def captions_of(dataset: Dataset, spec: CaptionsSpec | None, templates: Sequence[str]) -> Captions:
    """A picture's own caption, or `templates` to draw from where it has none."""
    spec = spec or CaptionsSpec()
    choices = tuple(tuple(templates) if one.caption is None else (one.caption,) for one in dataset.captions)
    return Captions(choices, spec.shuffle_tags, spec.dropout or 0.0)


def shapes_of(pictures: PictureSet, spec: DatasetSpec, resolution: int, crops: int) -> list[Shape]:
    """Of each crop of each picture: the nearest bucket, or a square."""
    if spec.buckets is None:
        return [(resolution, resolution)] * (len(pictures) * crops)
    shapes = bucket_shapes(spec.buckets, resolution)
    chosen = [nearest(shapes, picture.height, picture.width) for picture in pictures.pictures]
    return [shape for shape in chosen for _ in range(crops)]


def items_of(captions: Sequence[Captioned], crops: int, held: Collection[int]) -> list[int]:
    """Crops of a pass, numbered over all pictures: those of each picture as often as it is to be repeated, and none of
    those that are `held` out."""
    return [
        picture * crops + crop
        for picture, one in enumerate(captions)
        if picture not in held
        for crop in range(crops)
        for _ in range(one.repeats)
    ]


def windows_for(prompts: Collection[str], spec: CaptionsSpec, family: Family) -> int:
    """Windows of tokens for all prompts of a run: as many as the longest needs, up to captions.maxTokens."""
    return min(max(family.chunks_of(prompt) for prompt in prompts), spec.max_tokens // TOKENS_PER_WINDOW)


def check_words(words: Collection[str], captions: Sequence[Captioned], held: Collection[int] = ()) -> None:
    """Raises DataError where one of the new `words` stands in no caption but those of pictures that are `held` out.
    Pictures without a caption of their own are called by what has all of them."""
    texts = [one.caption for picture, one in enumerate(captions) if picture not in held]
    if not words or None in texts:
        return
    found = {word for text in texts for word in words_in(text or "", words)}
    missing = [word for word in words if word not in found]
    if missing:
        raise DataError(
            f"dataset.captions: no caption has {listed(missing)}, and so nothing would be learned of it; write the "
            "word into the captions of the pictures that show it, or use captions.source: Prompt"
        )
