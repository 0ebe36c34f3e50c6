"""What of a picture is shown, what SDXL is told about it, masks that go with it, and which pictures look alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_trainer.data.framing import CENTRE, Frame, frame
from finetune_trainer.data.masks import Masks
from finetune_trainer.data.near_duplicates import fingerprint, groups
from finetune_trainer.data.pictures import PictureSet, to_pixels
from finetune_trainer.errors import DataError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

FIXED = settings(deadline=None, derandomize=True)
SIDES = st.integers(1, 3000)
SHARES = st.floats(0, 1)


@given(SIDES, SIDES, st.tuples(st.integers(8, 1024), st.integers(8, 1024)), st.tuples(SHARES, SHARES), st.booleans())
@FIXED
def test_a_frame_lies_in_the_picture_and_is_as_large_as_can_be(
    height: int, width: int, target: tuple[int, int], offsets: tuple[float, float], flip: bool
) -> None:
    shown = frame(height, width, target, offsets, flip)
    left, top, right, bottom = shown.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert shown.width == width or shown.height == height
    # the aspect is the target's, but for whole pixels
    assert abs(shown.width * target[0] - shown.height * target[1]) <= max(target)
    original_height, original_width, crop_top, crop_left, target_height, target_width = shown.sizes(height, width)
    assert (original_height, original_width, target_height, target_width) == (height, width, *target)
    assert crop_top >= 0 <= crop_left


# picture (height, width), target, offsets, flip, sizes
SIZES = [
    ((100, 200), (50, 50), CENTRE, False, (100, 200, 0, 25, 50, 50)),
    ((100, 200), (50, 50), (0.0, 0.0), False, (100, 200, 0, 0, 50, 50)),
    # the left edge of the picture is the right edge of its mirror image
    ((100, 200), (50, 50), (0.0, 0.0), True, (100, 200, 0, 50, 50, 50)),
    ((300, 100), (50, 50), (0.5, 1.0), False, (300, 100, 100, 0, 50, 50)),
    ((300, 100), (96, 48), CENTRE, True, (300, 100, 24, 0, 96, 48)),
    ((64, 64), (64, 64), CENTRE, False, (64, 64, 0, 0, 64, 64)),
]


@pytest.mark.parametrize(("picture", "target", "offsets", "flip", "sizes"), SIZES)
def test_sizes_as_sdxl_is_told(
    picture: tuple[int, int],
    target: tuple[int, int],
    offsets: tuple[float, float],
    flip: bool,
    sizes: tuple[float, ...],
) -> None:
    assert frame(*picture, target, offsets, flip).sizes(*picture) == sizes


def test_which_pictures_are_enlarged() -> None:
    assert frame(40, 200, (50, 50), CENTRE, False).enlarges
    assert not frame(50, 60, (50, 50), CENTRE, False).enlarges
    assert frame(50, 60, (50, 64), CENTRE, False).enlarges


def test_a_frame_of_a_shape_of_its_own() -> None:
    image = Image.new("RGB", (60, 20), (255, 0, 0))
    image.paste((0, 255, 0), (30, 0, 60, 20))
    pixels = to_pixels(image, frame(20, 60, (16, 32), (1.0, 0.5), True))
    assert pixels.shape == (1, 3, 16, 32)
    # green is on the right, and after mirroring on the left; 10 of 40 columns were red
    np.testing.assert_allclose(pixels[0, :, 8, 0], [-1, 1, -1])
    np.testing.assert_allclose(pixels[0, :, 8, 31], [1, -1, -1])


def save(path: Path, mask: Image.Image | None, alpha: Image.Image | None = None) -> None:
    image = Image.effect_noise((40, 20), 60).convert("RGB")
    if alpha is not None:
        image.putalpha(alpha)
    image.save(path)
    if mask is not None:
        mask.save(path.with_name(path.stem + "-masklabel.png"))


def left_half(size: tuple[int, int] = (40, 20), value: int = 255) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(value, (0, 0, size[0] // 2, size[1]))
    return mask


@pytest.mark.parametrize("source", ["Sidecar", "AlphaChannel"])
def test_masks_are_cut_scaled_and_mirrored_with_the_picture(source: str, tmp_path: Path) -> None:
    save(tmp_path / "a.png", *((left_half(), None) if source == "Sidecar" else (None, left_half())))
    pictures = PictureSet.open(tmp_path)
    assert len(pictures) == 1, "a mask is no picture"
    masks = Masks(pictures, source)

    def shown(how: Frame) -> list[float]:
        mask = masks.get(0, how, 4, 4)
        assert mask.shape == (1, 1, 4, 4)
        assert mask.dtype == torch.float32
        return mask[0, 0, 2].tolist()

    assert shown(frame(20, 40, (8, 8), CENTRE, False)) == [1, 1, 0, 0]
    assert shown(frame(20, 40, (8, 8), CENTRE, True)) == [0, 0, 1, 1]
    assert shown(frame(20, 40, (8, 8), (0.0, 0.5), False)) == [1, 1, 1, 1]
    assert shown(frame(20, 40, (8, 8), (1.0, 0.5), False)) == [0, 0, 0, 0]
    # a latent that is partly covered counts as much
    assert shown(frame(20, 40, (8, 8), (0.375, 0.5), False)) == pytest.approx([1, 1, 0.4, 0])


def test_masks_that_cannot_be_used(tmp_path: Path) -> None:
    save(tmp_path / "a.png", left_half())
    save(tmp_path / "b.png", None)
    pictures = PictureSet.open(tmp_path)
    with pytest.raises(DataError, match=r"dataset\.masks: b\.png without a mask; put b-masklabel\.png beside it"):
        Masks(pictures, "Sidecar")
    left_half(value=0).save(tmp_path / "b-masklabel.png")
    with pytest.raises(DataError, match=r"dataset\.masks: the mask of b\.png is black everywhere.*paint"):
        Masks(pictures, "Sidecar")
    left_half((20, 40)).save(tmp_path / "b-masklabel.png")
    with pytest.raises(DataError, match=r"b-masklabel\.png has 20 × 40 pixels and its picture 40 × 20"):
        Masks(pictures, "Sidecar")
    (tmp_path / "b-masklabel.png").write_text("no picture")
    with pytest.raises(DataError, match=r"dataset\.masks: b-masklabel\.png is not a PNG"):
        Masks(pictures, "Sidecar")
    with pytest.raises(DataError, match=r"dataset\.masks: AlphaChannel, but nothing in any picture is transparent"):
        Masks(pictures, "AlphaChannel")


def test_a_picture_without_transparency_counts_everywhere_and_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", None, left_half())
    save(tmp_path / "b.png", None)
    masks = Masks(PictureSet.open(tmp_path), "AlphaChannel")
    assert masks.opaque == (1,)
    assert masks.get(1, frame(20, 40, (8, 8), CENTRE, False), 4, 4).min() == 1


def test_the_digest_of_masks_is_of_what_they_show(tmp_path: Path) -> None:
    save(tmp_path / "a.png", left_half())
    pictures = PictureSet.open(tmp_path)
    before = Masks(pictures, "Sidecar").digest
    left_half(value=254).save(tmp_path / "a-masklabel.png")
    assert Masks(pictures, "Sidecar").digest != before


def scene(seed: int) -> Image.Image:
    """A smooth picture of its own."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC)


def test_pictures_that_look_alike_are_found_and_others_are_not(tmp_path: Path) -> None:
    scene(1).save(tmp_path / "small.jpg", quality=60)
    retouched = scene(1)
    retouched.paste((255, 255, 255), (40, 40, 44, 44))
    pictures = [
        scene(1),
        scene(2),
        scene(1).resize((200, 180)),
        scene(3),
        Image.open(tmp_path / "small.jpg"),
        scene(2).point(lambda value: value // 2 + 30),
        retouched,
        scene(1).transpose(Image.Transpose.ROTATE_90),
    ]
    assert groups([fingerprint(picture) for picture in pictures]) == [[0, 2, 4, 6], [1, 5]]


def test_groups_join_through_what_is_between() -> None:
    assert groups([0b0, 0b11111, 0b1111111111, 1 << 63, 0]) == [[0, 1, 2, 3, 4]]
    assert groups([0, 2**6 - 1]) == []
    assert groups([]) == []
