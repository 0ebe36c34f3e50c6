"""All that lies in the user's folder, read and found to fit together."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.dataset import CaptionsSpec, DatasetSpec

from finetune_trainer.data.caption_files import Captioned, digest_of, read_captions
from finetune_trainer.data.masks import Masks
from finetune_trainer.data.pictures import PictureSet


@dataclass(frozen=True)
class Dataset:
    """Pictures with what belongs to each."""

    pictures: PictureSet
    captions: tuple[Captioned, ...]
    """One for each picture."""
    masks: Masks | None

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of what is trained on, by what it is; captions and masks only where they are files."""
        digests = {"pictures": self.pictures.digest}
        if any(one != Captioned(None) for one in self.captions):
            digests["captions"] = digest_of(self.captions)
        if self.masks is not None:
            digests["masks"] = self.masks.digest
        return digests


def read_dataset(pictures: PictureSet, spec: DatasetSpec) -> Dataset:
    """Looks for the captions and masks of `pictures`. Quick, and needs no model: worth doing before anything is drawn.

    Raises:
        DataError: captions or masks are missing, left over, or cannot be used.
    """
    captions = read_captions(pictures, spec.captions or CaptionsSpec())
    masks = None if spec.masks == "None" else Masks(pictures, spec.masks)
    return Dataset(pictures, captions, masks)
