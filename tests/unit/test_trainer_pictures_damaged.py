"""Whatever the bytes of a picture are, it is read or refused with its name and a remedy; never anything else."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import pytest
from finetune_trainer.data import pictures
from finetune_trainer.data.pictures import PictureSet, read_alpha, read_rgb
from finetune_trainer.errors import DataError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

ORIENTATION = 0x0112


def exif(orientation: int = 6) -> Image.Exif:
    """As a phone writes it."""
    found = Image.Exif()
    found[ORIENTATION] = orientation
    found[0x010F] = "maker"
    found[0x011A] = (72, 1)
    found.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    found.get_ifd(0x8769)[0x9000] = b"0230"
    return found


def picture(kind: str, mode: str = "RGB", **more: object) -> bytes:
    buffer = io.BytesIO()
    gradient = Image.linear_gradient("L").resize((12, 8)).convert(mode)
    gradient.save(buffer, kind, exif=exif(), **more)
    return buffer.getvalue()


WHOLE = [
    picture("JPEG"),
    picture("JPEG", "L", progressive=True),
    picture("PNG"),
    picture("PNG", "RGBA", icc_profile=b"x" * 100),
    picture("PNG", "P"),
    picture("WEBP"),
    picture("WEBP", "RGBA", lossless=True),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A picture with some bytes changed, most of them at its head, and perhaps without its end."""
    data = bytearray(draw(st.sampled_from(WHOLE)))
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data) - 1)) :]
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, 250) | st.integers(0, 2000))
        if place < len(data):
            data[place] = draw(st.sampled_from([0, 1, 127, 255]) | st.integers(0, 255))
    return bytes(data)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "subject.jpg"


@settings(max_examples=150, deadline=None)
@given(data=damaged())
def test_read_or_refused_by_name(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    for read, field in ((read_rgb, "dataset.uri"), (read_alpha, "dataset.masks")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = read(path)
        except DataError as error:
            assert str(error).startswith(f"{field}: subject.jpg ")
            assert str(error).endswith(("replace or remove the file", "scale it down", "save it with 8 bits"))
        else:
            assert image.width * image.height < pictures.TOO_MANY_PIXELS


# what stands where EXIF should, whether the picture can be used all the same
BROKEN_EXIF: list[tuple[str, bytes, bool]] = [
    ("cut in its header", b"II*\0", False),
    ("no EXIF at all", b"hello", False),
    # the libraries pass over an entry that they cannot read, and so nothing says that the picture should be turned
    ("cut in its directory", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0", True),
    ("of a type that there is not", struct.pack("<4sIHHHI4s", b"II*\0", 8, 1, ORIENTATION, 99, 1, b"ab"), True),
    ("an orientation in letters", struct.pack("<4sIHHHI4sI", b"II*\0", 8, 1, ORIENTATION, 2, 4, b"ab", 0), True),
]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(("name", "directory", "usable"), BROKEN_EXIF, ids=[row[0] for row in BROKEN_EXIF])
def test_exif_that_is_broken(name: str, directory: bytes, usable: bool, tmp_path: Path) -> None:
    Image.new("RGB", (8, 4)).save(tmp_path / "a.webp", exif=b"Exif\0\0" + directory)
    if not usable:
        with pytest.raises(DataError, match=r"^dataset\.uri: a\.webp is damaged \(.+\); replace or remove the file$"):
            PictureSet.open(tmp_path)
        return
    (found,) = PictureSet.open(tmp_path).pictures
    assert (found.width, found.height) == (8, 4)


def test_exif_that_nobody_could_write_again_is_read_all_the_same(tmp_path: Path) -> None:
    """A resolution in letters, from a camera; the orientation is well."""
    entries = struct.pack("<HHIHxx", ORIENTATION, 3, 1, 6) + struct.pack("<HHI4s", 0x011A, 2, 4, b"ab")
    directory = struct.pack("<4sIH", b"II*\0", 8, 2) + entries + bytes(4)
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + directory)
    (found,) = PictureSet.open(tmp_path).pictures
    assert (found.width, found.height) == (4, 8)


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_of_exif(orientation: int, tmp_path: Path) -> None:
    """Beside Pillow's own."""
    image = Image.linear_gradient("L").resize((8, 4)).rotate(10).convert("RGB")
    for kind in ("PNG", "WEBP"):
        path = tmp_path / f"a.{kind.lower()}"
        image.save(path, kind, exif=exif(orientation), **({"lossless": True} if kind == "WEBP" else {}))
        with Image.open(path) as opened:
            expected = ImageOps.exif_transpose(opened)
        read = read_rgb(path)
        assert read.size == ((4, 8) if 5 <= orientation <= 8 else (8, 4))
        assert read.tobytes() == expected.tobytes()


def claiming(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes whose header promises so many pixels of 1 bit."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_the_first_picture_that_is_too_large(path: Path) -> None:
    path.write_bytes(claiming(10_000, 10_000))
    with pytest.raises(DataError, match=r"has 10000 × 10000 pixels, which is not below 100 megapixels; scale it down$"):
        read_rgb(path)
    path.write_bytes(claiming(10_000, 9_999))
    with pytest.raises(DataError, match="is damaged"):
        read_rgb(path)


def test_the_last_picture_that_is_small_enough(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 4)).save(path)
    monkeypatch.setattr(pictures, "TOO_MANY_PIXELS", 33)
    assert read_rgb(path).size == (8, 4)
    monkeypatch.setattr(pictures, "TOO_MANY_PIXELS", 32)
    with pytest.raises(DataError, match="scale it down"):
        read_rgb(path)
