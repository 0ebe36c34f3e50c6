"""A folder of pictures: which files count, whether each can be read, and how one becomes pixels."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from finetune_trainer.data.framing import Frame
from finetune_trainer.data.near_duplicates import fingerprint
from finetune_trainer.digests import sha256_of
from finetune_trainer.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
FORMATS = ("PNG", "JPEG", "WEBP")
TOO_MANY_PIXELS = 100_000_000
MASK_SUFFIX = "-masklabel.png"
"""A mask beside its picture: subject.jpg and subject-masklabel.png, as OneTrainer and its tools name them."""
MAX_LISTED = 10
ORIENTATION = 0x0112
"""Of EXIF: which of these turns a camera's picture upright."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """A picture that was read once and found whole."""

    path: Path
    digest: str
    """SHA-256 of the file."""
    width: int
    """Pixels, after the rotation that EXIF asks for."""
    height: int
    fingerprint: int
    """See `near_duplicates`."""

    def load(self) -> Image.Image:
        """RGB, rotated as EXIF says, transparency on white."""
        return read_rgb(self.path)


@dataclass(frozen=True)
class PictureSet:
    """Pictures in the order of their paths."""

    pictures: tuple[Picture, ...]
    folder: Path | None = None
    """What `open` was given; None for pictures that were listed one by one."""

    @classmethod
    def open(cls, folder: Path) -> PictureSet:
        """Reads every PNG, JPEG and WebP below `folder`. Masks, other files and hidden ones are passed over.

        Raises:
            DataError: there is no picture, or some cannot be used; names the files and the remedies.
        """
        files = files_below(folder)
        chosen = [path for path in files if path.suffix.lower() in SUFFIXES and not path.name.endswith(MASK_SUFFIX)]
        if not chosen:
            others = Counter(path.suffix.lower() or path.name for path in files).most_common(5)
            found = ", ".join(f"{count} {suffix}" for suffix, count in others) or "nothing"
            raise DataError(
                f"dataset.uri: no pictures found; PNG, JPEG and WebP count, the folder has {found}. Check the path, "
                "or convert the pictures"
            )
        return cls(cls.of(chosen).pictures, folder)

    @classmethod
    def of(cls, paths: Sequence[Path], field: str = "dataset.uri") -> PictureSet:
        """These pictures, in this order. Raises DataError as `open` does; its message begins with `field`."""
        pictures: list[Picture] = []
        refusals: list[str] = []
        for path in paths:
            try:
                pictures.append(_inspect(path, field))
            except DataError as error:
                refusals.append(str(error))
        if len(refusals) == 1:
            raise DataError(refusals[0])
        if refusals:
            # all at once: a run that is refused ten times for ten files costs an afternoon
            listed = "; ".join(refusal.removeprefix(f"{field}: ") for refusal in refusals[:MAX_LISTED])
            more = f"; and {len(refusals) - MAX_LISTED} more" if len(refusals) > MAX_LISTED else ""
            raise DataError(f"{field}: {len(refusals)} of {len(paths)} pictures cannot be used: {listed}{more}")
        return cls(tuple(pictures))

    @property
    def digest(self) -> str:
        """SHA-256 over the pictures' own, in order."""
        return hashlib.sha256("\n".join(picture.digest for picture in self.pictures).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.pictures)


def read_rgb(path: Path, field: str = "dataset.uri") -> Image.Image:
    """A picture as 8-bit RGB: rotated as EXIF says, transparency laid on white.

    Raises:
        DataError: the file is no picture, is damaged anywhere, or has 100 megapixels or more.
    """
    with _opened(path, field) as upright:
        if not upright.has_transparency_data:
            return upright.convert("RGB")
        rgba = upright.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")


def read_alpha(path: Path) -> Image.Image:
    """How opaque a picture is, 8 bits: 255 where nothing shines through; rotated as EXIF says. Raises as `read_rgb`."""
    with _opened(path, "dataset.masks") as upright:
        return upright.convert("RGBA").getchannel("A")


@contextmanager
def _opened(path: Path, field: str) -> Iterator[Image.Image]:
    """Whatever fails within is a DataError that names the file."""
    remedy = "replace or remove the file"
    try:
        with _announced(path) as image:
            # before anything is decoded: a few kB can unpack to gigabytes
            if image.width * image.height >= TOO_MANY_PIXELS:
                raise DataError(
                    f"{field}: {path.name} has {image.width} × {image.height} pixels, which is not below "
                    f"{TOO_MANY_PIXELS // 1_000_000} megapixels; scale it down"
                )
            upright = _upright(image)
            if upright.mode.startswith("I;16") or upright.mode in ("I", "F"):
                raise DataError(f"{field}: {path.name} has 16 bits a channel; save it with 8 bits")
            yield upright
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{field}: {path.name} has too many pixels ({error}); scale it down") from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{field}: {path.name} is not a PNG, JPEG or WebP picture, whatever its name says; {remedy}"
        ) from error
    # all of them: in damaged files Pillow runs into struct.error, TypeError, MemoryError and more
    except Exception as error:
        raise DataError(f"{field}: {path.name} is damaged ({error or type(error).__name__}); {remedy}") from error


def _announced(path: Path) -> Image.Image:
    """What the file says of itself; nothing is decoded yet."""
    with warnings.catch_warnings():
        # Pillow warns of an attack from 89 megapixels on; our own bound is what counts
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path, formats=FORMATS)


def _upright(image: Image.Image) -> Image.Image:
    """`image`, read whole, rotated as EXIF says. ImageOps.exif_transpose would write all of EXIF anew besides, and
    stumble over what a camera put there and nobody needs."""
    # PNG may have EXIF behind its pixels
    image.load()
    turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def to_pixels(image: Image.Image, frame: Frame) -> Tensor:
    """What `frame` shows of `image`, as float32 [1, 3, height, width] in -1 … 1; scaled with Lanczos."""
    # cropped first: a box given to resize lets the filter look over its edges
    size = (frame.target_width, frame.target_height)
    cut = image.crop(frame.box).resize(size, Image.Resampling.LANCZOS)
    if frame.flip:
        cut = ImageOps.mirror(cut)
    values = torch.from_numpy(np.array(cut, dtype=np.uint8)).float()
    return (values / 127.5 - 1).permute(2, 0, 1).unsqueeze(0).contiguous()


def files_below(folder: Path) -> list[Path]:
    """All files below `folder` in the order of their paths, without hidden ones and what file systems leave."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not _is_stray(path, folder))


def _is_stray(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return any(part.startswith(".") or part in ("lost+found", "__MACOSX") for part in parts)


def _inspect(path: Path, field: str) -> Picture:
    image = read_rgb(path, field)
    return Picture(path, sha256_of(path), image.width, image.height, fingerprint(image))
