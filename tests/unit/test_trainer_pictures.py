"""Which files of a folder are pictures, which are refused and how, and what becomes of the others."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_trainer.data.framing import frame
from finetune_trainer.data.pictures import PictureSet, read_rgb, to_pixels
from finetune_trainer.errors import DataError
from PIL import Image

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def two_halves(size: tuple[int, int] = (8, 4)) -> Image.Image:
    """Red on the left, green on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (size[0] // 2, 0, *size))
    return image


def rotated_by_exif(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90° clockwise to see it right
    two_halves((16, 8)).save(path, exif=exif, quality=100, subsampling=0)


def half_transparent(path: Path) -> None:
    image = Image.new("RGBA", (8, 4), (*RED, 255))
    image.paste((0, 0, 0, 0), (4, 0, 8, 4))
    image.save(path)


def palette_with_transparency(path: Path) -> None:
    image = two_halves().quantize(4)
    green = image.getpixel((7, 0))
    image.save(path, transparency=green)


# file name, how it is made, size after reading, colour at the left or top, colour at the right or bottom
READABLE: list[tuple[str, Callable[[Path], object], tuple[int, int], tuple[int, ...], tuple[int, ...]]] = [
    ("plain.png", lambda path: two_halves().save(path), (8, 4), RED, GREEN),
    ("plain.webp", lambda path: two_halves().save(path, lossless=True), (8, 4), RED, GREEN),
    ("plain.JPG", lambda path: two_halves((32, 16)).save(path, quality=100, subsampling=0), (32, 16), RED, GREEN),
    ("rotated.jpeg", rotated_by_exif, (8, 16), RED, GREEN),
    ("alpha.png", half_transparent, (8, 4), RED, WHITE),
    ("palette.png", palette_with_transparency, (8, 4), RED, WHITE),
    ("palette-opaque.png", lambda path: two_halves().quantize(4).save(path), (8, 4), RED, GREEN),
    ("grey.png", lambda path: two_halves().convert("L").save(path), (8, 4), (76,) * 3, (150,) * 3),
    ("cmyk.jpg", lambda path: two_halves((32, 16)).convert("CMYK").save(path, quality=100), (32, 16), RED, GREEN),
    ("tall.png", lambda path: two_halves((4, 400)).save(path), (4, 400), RED, GREEN),
    ("bits.png", lambda path: two_halves().convert("1", dither=0).save(path), (8, 4), (0,) * 3, (255,) * 3),
]


@pytest.mark.parametrize(("name", "make", "size", "first", "last"), READABLE, ids=[row[0] for row in READABLE])
def test_readable(
    name: str,
    make: Callable[[Path], object],
    size: tuple[int, int],
    first: tuple[int, ...],
    last: tuple[int, ...],
    tmp_path: Path,
) -> None:
    make(tmp_path / name)
    (picture,) = PictureSet.open(tmp_path).pictures
    image = picture.load()
    assert (image.mode, image.size, (picture.width, picture.height)) == ("RGB", size, size)
    assert image.getpixel((0, 0)) == pytest.approx(first, abs=3)
    assert image.getpixel((size[0] - 1, size[1] - 1)) == pytest.approx(last, abs=3)


def cut_off(path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:700])


def claims_to_be_huge(path: Path) -> None:
    """A PNG of a hundred bytes whose header promises 20,000 × 20,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    ("cut.png", cut_off, "dataset.uri: cut.png is damaged .*; replace or remove the file"),
    (
        "cut.jpg",
        lambda path: path.write_bytes(b"\xff\xd8\xff\xe0 nothing"),
        "cut.jpg is .*; replace or remove the file",
    ),
    (
        "text.png",
        lambda path: path.write_text("hello"),
        "text.png is not a PNG, JPEG or WebP picture.*replace or remove",
    ),
    ("empty.jpg", lambda path: path.write_bytes(b""), "empty.jpg is not a PNG, JPEG or WebP picture"),
    ("gif.png", lambda path: two_halves().save(path, format="GIF"), "gif.png is not a PNG, JPEG or WebP picture"),
    ("huge.png", claims_to_be_huge, "huge.png has .*pixels.*; scale it down"),
    (
        "deep.png",
        lambda path: Image.fromarray(np.zeros((4, 4), np.uint16)).save(path),
        "deep.png has 16 bits a channel; save it with 8 bits",
    ),
]


@pytest.mark.parametrize(("name", "make", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused(name: str, make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    two_halves().save(tmp_path / "a good one.png")
    make(tmp_path / name)
    with pytest.raises(DataError, match=message):
        PictureSet.open(tmp_path)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    two_halves().save(tmp_path / "good.png")
    cut_off(tmp_path / "cut.png")
    claims_to_be_huge(tmp_path / "huge.png")
    with pytest.raises(DataError, match=r"^dataset\.uri: 2 of 3 pictures cannot be used: cut\.png .*; huge\.png has "):
        PictureSet.open(tmp_path)
    for number in range(11):
        (tmp_path / f"x{number:02}.png").touch()
    with pytest.raises(DataError, match=r"13 of 14 pictures .* x07\.png is not .*; and 3 more$"):
        PictureSet.open(tmp_path)


def test_masks_are_no_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "a-masklabel.png"):
        two_halves().save(tmp_path / name)
    assert [picture.path.name for picture in PictureSet.open(tmp_path).pictures] == ["a.png"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="no pictures found"):
        PictureSet.open(tmp_path)


def test_stray_files_are_passed_over_and_the_rest_is_sorted(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        two_halves().save(tmp_path / name)
    for name in (".DS_Store", "._a.png", ".hidden/x.png", "lost+found/x.png", "__MACOSX/a.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no picture")
    found = [picture.path.relative_to(tmp_path).as_posix() for picture in PictureSet.open(tmp_path).pictures]
    assert found == ["a.png", "b.png", "sub/c.png"]


@pytest.mark.parametrize(
    ("files", "found"),
    [([], "nothing"), (["a.heic", "b.heic", "c.txt"], "2 .heic, 1 .txt"), ([".DS_Store"], "nothing")],
)
def test_a_folder_without_pictures_says_what_it_has(files: list[str], found: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=f"dataset.uri: no pictures found; .* the folder has {found}. Check the path"):
        PictureSet.open(tmp_path)


@pytest.mark.parametrize(
    ("offsets", "flip", "left", "right"),
    [
        ((0.0, 0.5), False, RED, RED),
        ((0.5, 0.5), False, RED, GREEN),
        ((0.5, 0.5), True, GREEN, RED),
        ((0.999, 0.5), False, GREEN, GREEN),
    ],
)
def test_squares(offsets: tuple[float, float], flip: bool, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    pixels = to_pixels(two_halves((32, 16)), frame(16, 32, (8, 8), offsets, flip))
    assert pixels.shape == (1, 3, 8, 8)
    assert pixels.dtype == torch.float32
    for column, colour in ((0, left), (7, right)):
        np.testing.assert_allclose(pixels[0, :, 4, column], np.array(colour) / 127.5 - 1, atol=1e-6)


def test_the_digest_is_of_contents_and_order(tmp_path: Path) -> None:
    two_halves().save(tmp_path / "a.png")
    two_halves((4, 4)).save(tmp_path / "b.png")
    both = PictureSet.open(tmp_path)
    assert len({both.digest, PictureSet(both.pictures[::-1]).digest, PictureSet(both.pictures[:1]).digest}) == 3
    assert len(both) == 2


def test_a_class_picture_that_is_damaged_is_not_called_part_of_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "0.png").touch()
    with pytest.raises(DataError, match=r"^class pictures: 0\.png is not"):
        read_rgb(tmp_path / "0.png", "class pictures")
