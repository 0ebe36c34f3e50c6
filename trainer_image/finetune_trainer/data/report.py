"""What stands out in the user's data, said before the training begins."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from finetune_trainer.data import near_duplicates
from finetune_trainer.data.buckets import Shape
from finetune_trainer.data.caption_files import METADATA, listed
from finetune_trainer.data.captions import TOKENS_PER_WINDOW, Captions, kept_part
from finetune_trainer.data.latents import Latents
from finetune_trainer.data.pictures import MASK_SUFFIX, PictureSet, files_below


@dataclass(frozen=True)
class Bucket:
    """Pictures that are trained in one shape."""

    height: int
    """Pixels."""
    width: int
    pictures: int
    samples: int
    """Of a pass over all pictures: crops and repeats counted."""


@dataclass(frozen=True)
class CutCaption:
    """A caption that is longer than what is read."""

    caption: str
    kept: str
    """Its beginning that is read."""


@dataclass(frozen=True)
class DataReport:
    """Nothing in it stops a training. Pictures that are held out count in `held_out` and `alike` alone."""

    pictures: int
    samples_per_epoch: int
    """Pictures, crops and repeats counted."""
    class_pictures: int
    captions: int
    """Different ones."""
    text_windows: int
    """Windows of tokens that each caption is read in."""
    buckets: tuple[Bucket, ...]
    enlarged: tuple[str, ...]
    """Pictures with fewer pixels than they are trained with."""
    alike: tuple[tuple[str, ...], ...]
    """Groups of pictures that look alike."""
    cut: tuple[CutCaption, ...]
    opaque: tuple[str, ...]
    """Pictures that count everywhere, for no part of them is transparent."""
    unseen: tuple[str, ...]
    """Pictures with a crop that shows nothing of what their mask shows: it teaches nothing."""
    held_out: tuple[str, ...]
    """Pictures that are not trained on, but tell how the loss is on what was never shown."""
    passed_over: dict[str, int]
    """Files that are neither pictures nor captions nor masks, by how their names end."""

    def rows(self) -> list[tuple[str, str]]:
        """What is to be told, with a name for each; for a table."""
        shapes = ", ".join(f"{b.width} × {b.height}: {b.pictures}" for b in self.buckets)
        rows = [("Pictures", f"{self.pictures}; {self.samples_per_epoch} samples in a pass")]
        if self.class_pictures:
            rows.append(("Class pictures", str(self.class_pictures)))
        rows.append(("Pictures by shape (width × height)", shapes))
        rows.append(("Captions", f"{self.captions}, read in {self.text_windows} × {TOKENS_PER_WINDOW} tokens"))
        told = (
            ("Held out of the training, for the validation loss", listed(self.held_out)),
            ("Smaller than they are trained", listed(self.enlarged)),
            ("Look alike", "; ".join(" and ".join(group) for group in self.alike[:10])),
            ("Captions cut", "; ".join(f"“{cut.caption}” after “{_end(cut.kept)}”" for cut in self.cut[:10])),
            ("Without transparency, trained whole", listed(self.opaque)),
            ("Crops that show nothing of the mask", listed(self.unseen)),
            ("Files passed over", ", ".join(f"{count} {kind}" for kind, count in self.passed_over.items())),
        )
        return rows + [(name, text) for name, text in told if text]

    def lines(self) -> list[str]:
        """The rows, for a log."""
        return [f"{name}: {text}" for name, text in self.rows()]

    def to_json(self) -> str:
        """The whole report as JSON, for programs; keys are the fields' names."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


def look_at(
    latents: Latents,
    pictures: PictureSet,
    items: Sequence[int],
    shapes: Sequence[Shape],
    captions: Captions,
    windows: int,
    windows_of: Callable[[str], int],
    class_pictures: int,
    opaque: Sequence[int] = (),
) -> DataReport:
    """The report on a run's data.

    Args:
        latents: of the user's pictures; nothing is encoded.
        items: of a pass, those that are repeated more than once. A picture that has none is held out.
        shapes: of each item of the latents.
        windows: of tokens that are read of each caption.
        windows_of: how many a caption fills.
        opaque: pictures whose mask is white everywhere.
    """
    names = [_name(index, pictures) for index in range(len(pictures))]
    crops = sorted(set(items))
    trained = {latents.picture_of(item) for item in crops}
    by_shape = Counter(shapes[item] for item in items)
    pictures_of = Counter(shape for shape, _ in {(shapes[i], latents.picture_of(i)) for i in crops})
    enlarged = {latents.picture_of(i) for i in crops if latents.frame(i, shapes[i]).enlarges}
    unseen = {
        latents.picture_of(i)
        for i in crops
        if (mask := latents.mask(i, shapes[i])) is not None and not bool(mask.any())
    }
    texts = Captions(tuple(captions.choices[index] for index in sorted(trained))).all()
    held_out = [index for index in range(len(pictures)) if index not in trained]
    cut = [text for text in texts if windows_of(text) > windows]
    alike = near_duplicates.groups([picture.fingerprint for picture in pictures.pictures])
    return DataReport(
        pictures=len(trained),
        samples_per_epoch=len(items),
        class_pictures=class_pictures,
        captions=len(texts),
        text_windows=windows,
        buckets=tuple(
            Bucket(height, width, pictures_of[height, width], count)
            for (height, width), count in sorted(by_shape.items())
        ),
        enlarged=tuple(names[index] for index in sorted(enlarged)),
        alike=tuple(tuple(names[index] for index in group) for group in alike),
        cut=tuple(CutCaption(text, kept_part(text, windows, windows_of)) for text in cut),
        opaque=tuple(names[index] for index in opaque if index in trained),
        unseen=tuple(names[index] for index in sorted(unseen)),
        held_out=tuple(names[index] for index in held_out),
        passed_over=_passed_over(pictures),
    )


def _passed_over(pictures: PictureSet) -> dict[str, int]:
    if pictures.folder is None:
        return {}
    known = {picture.path for picture in pictures.pictures}
    others = [
        path
        for path in files_below(pictures.folder)
        if path not in known
        and path.suffix.lower() != ".txt"
        and path.name != METADATA
        and not path.name.endswith(MASK_SUFFIX)
    ]
    return dict(Counter(path.suffix.lower() or path.name for path in others).most_common(10))


def _name(index: int, pictures: PictureSet) -> str:
    path = pictures.pictures[index].path
    return path.name if pictures.folder is None else path.relative_to(pictures.folder).as_posix()


def _end(text: str) -> str:
    words = text.split()
    return text if len(words) <= 4 else "… " + " ".join(words[-4:])
