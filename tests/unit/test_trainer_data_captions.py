"""Captions beside the pictures: where they are found, what is refused and how, and how they vary."""

import json
from collections import Counter
from pathlib import Path

import pytest
from finetune_api.dataset import CaptionsSpec
from finetune_trainer.data.caption_files import (
    Captioned,
    digest_of,
    parse_folder_name,
    parse_jsonl,
    read_captions,
)
from finetune_trainer.data.captions import Captions, kept_part, shuffled
from finetune_trainer.data.draw import Purpose, draw
from finetune_trainer.data.pictures import PictureSet
from finetune_trainer.errors import DataError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

FIXED = settings(deadline=None, derandomize=True)


def lay_out(folder: Path, files: dict[str, str | bytes | None]) -> PictureSet:
    """Writes texts, and pictures where the content is None."""
    for number, (name, content) in enumerate(files.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return PictureSet.open(folder)


def record(file_name: str, **values: object) -> str:
    return json.dumps({"file_name": file_name, **values}) + "\n"


A, B = {"a.png": None}, {"b.png": None}

# source, files, captions and repeats of the pictures in order of their paths
FOUND: list[tuple[str, dict[str, str | bytes | None], list[tuple[str | None, int]]]] = [
    ("Prompt", A | {"a.txt": "not looked at"}, [(None, 1)]),
    ("Sidecar", A | B | {"a.txt": "one dog\n", "b.txt": "two\r\n dogs "}, [("one dog", 1), ("two dogs", 1)]),
    ("Sidecar", {"x/a.webp": None, "x/a.txt": "\ufeffwith a byte order mark"}, [("with a byte order mark", 1)]),
    ("Sidecar", {"a.b.png": None, "a.b.TXT": "dots in names"}, [("dots in names", 1)]),
    ("Jsonl", A | B | {"metadata.jsonl": record("b.png", text="B") + record("a.png", text="A")}, [("A", 1), ("B", 1)]),
    ("Jsonl", A | {"metadata.jsonl": "\n" + record("./a.png", caption="C", tags=[1]) + "\n\n"}, [("C", 1)]),
    (
        "Jsonl",
        {"train/a.png": None, "train/metadata.jsonl": record("a.png", text="in its folder")},
        [("in its folder", 1)],
    ),
    ("Jsonl", {"x/a.png": None, "metadata.jsonl": record("x/a.png", text="from above")}, [("from above", 1)]),
    ("Folder", {"20_sks dog/a.png": None, "3_cat/b.png": None}, [("sks dog", 20), ("cat", 3)]),
    ("Folder", {"img/10_sks_dog/deep/a.png": None}, [("sks_dog", 10)]),
    ("Folder", {"2_a/5_b/x.png": None}, [("b", 5)]),
    (
        "Folder",
        {"4_sks/a.png": None, "4_sks/a.txt": "sks at a beach", "4_sks/b.png": None},
        [("sks at a beach", 4), ("sks", 4)],
    ),
]


@pytest.mark.parametrize(("source", "files", "expected"), FOUND)
def test_found(
    source: str, files: dict[str, str | bytes | None], expected: list[tuple[str | None, int]], tmp_path: Path
) -> None:
    found = read_captions(lay_out(tmp_path, files), CaptionsSpec.model_validate({"source": source}))
    assert [(one.caption, one.repeats) for one in found] == expected


MANY = {f"{number:02}.png": None for number in range(12)}

# source, files, what the error says
REFUSED: list[tuple[str, dict[str, str | bytes | None], str]] = [
    ("Sidecar", A | B | {"a.txt": "A"}, r"b\.png without a caption; write one beside each, a\.txt, or use .*Prompt"),
    ("Sidecar", A | {"a.txt": " \n"}, r"a\.png without a caption.*captions\.dropout"),
    ("Sidecar", A | {"a.txt": "A", "x/c.txt": "C"}, r"x/c\.txt without a picture of that name; rename it"),
    ("Sidecar", A | {"a.txt": b"caf\xe9"}, r"a\.txt is not UTF-8 \(.* at byte 3\); save it as UTF-8"),
    ("Sidecar", MANY, r"09\.png and 2 more without a caption"),
    ("Jsonl", A, r"no metadata\.jsonl found; write one"),
    ("Jsonl", A | B | {"metadata.jsonl": record("a.png", text="A")}, r'b\.png without a caption; .*"file_name": "b\.p'),
    (
        "Jsonl",
        A | {"metadata.jsonl": record("a.png", text="A") + record("no.png", text="C")},
        r"no\.png \(metadata\.jsonl, line 2\): there is no such picture; .*Correct or remove",
    ),
    ("Jsonl", A | {"metadata.jsonl": record("../a.png", text="A")}, r"\.\./a\.png .*there is no such picture"),
    ("Jsonl", A | {"metadata.jsonl": record("/a.png", text="A")}, r"/a\.png .*there is no such picture"),
    (
        "Jsonl",
        A | {"metadata.jsonl": 2 * record("a.png", text="A")},
        r"line 2: a\.png has a caption in metadata\.jsonl, line 1 already",
    ),
    (
        "Jsonl",
        A | {"metadata.jsonl": record("a.png", text="A") + "{'file_name'}\n"},
        r"metadata\.jsonl, line 2 is not JSON .*one object a line",
    ),
    ("Jsonl", A | {"metadata.jsonl": "[1]"}, r"line 1 is not an object"),
    ("Jsonl", A | {"metadata.jsonl": record("a.png")}, r"line 1 has no text"),
    ("Jsonl", A | {"metadata.jsonl": record("a.png", text=["A"])}, r"line 1 has no text"),
    ("Jsonl", A | {"metadata.jsonl": '{"text": "A"}'}, r"line 1 has no file_name"),
    ("Folder", A | {"2_dog/b.png": None}, r"a\.png in no folder that gives repeats and caption; move .*20_sks dog"),
    ("Folder", {"dog/a.png": None}, r"dog/a\.png in no folder"),
    ("Folder", {"0_dog/a.png": None}, r"0_dog: repeats are 1 to 1000; rename"),
    ("Folder", {"20240101_trip/a.png": None}, r"20240101_trip: repeats are 1 to 1000"),
    ("Folder", {"9" * 200 + "_x/a.png": None}, r"9_x: repeats are 1 to 1000"),
]


@pytest.mark.parametrize(("source", "files", "message"), REFUSED)
def test_refused(source: str, files: dict[str, str | bytes | None], message: str, tmp_path: Path) -> None:
    pictures = lay_out(tmp_path, files)
    with pytest.raises(DataError, match=r"^dataset\.captions: .*" + message):
        read_captions(pictures, CaptionsSpec.model_validate({"source": source}))


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), max_size=30)


@given(NAMES | st.tuples(st.integers(0), st.sampled_from("_- "), NAMES).map(lambda parts: "".join(map(str, parts))))
@FIXED
def test_any_folder_name_is_read_or_passed_over(name: str) -> None:
    parsed = parse_folder_name(name)
    if parsed is not None:
        assert parsed[0] >= 0
        assert parsed[1] == " ".join(parsed[1].split()) != ""


@given(st.integers(1, 1000), NAMES.filter(lambda text: text.strip()))
@FIXED
def test_a_folder_named_after_the_rule_is_understood(repeats: int, caption: str) -> None:
    assert parse_folder_name(f"{repeats}_{caption}") == (repeats, " ".join(caption.split()))


@given(st.text(max_size=80) | st.lists(st.sampled_from(["{", "}", '"file_name"', ":", '"a"', ",", "\n"])).map("".join))
@FIXED
def test_any_jsonl_is_read_or_refused_with_its_line(text: str) -> None:
    try:
        found = parse_jsonl(text, "metadata.jsonl")
    except DataError as error:
        assert "metadata.jsonl, line " in str(error)
    else:
        assert all(caption.strip() and name.strip() for _, name, caption in found)


@given(st.lists(st.tuples(NAMES, NAMES).filter(lambda pair: all(text.strip() for text in pair)), max_size=5))
@FIXED
def test_what_is_written_as_jsonl_is_read(pairs: list[tuple[str, str]]) -> None:
    text = "".join(
        json.dumps({"file_name": name, "text": caption}, ensure_ascii=False) + "\n" for name, caption in pairs
    )
    assert parse_jsonl(text, "x") == [
        (number, name, " ".join(caption.split())) for number, (name, caption) in enumerate(pairs, 1)
    ]


def test_captions_are_part_of_what_a_checkpoint_belongs_to() -> None:
    ways = [
        [Captioned("a")],
        [Captioned("b")],
        [Captioned("a", 2)],
        [Captioned(None)],
        [Captioned("a"), Captioned("b")],
    ]
    assert len({digest_of(way) for way in ways}) == len(ways)


TAGS = st.lists(st.text("abc xyz", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=8)


@given(TAGS, st.integers(0, 1000))
@FIXED
def test_shuffled_tags_are_the_same_tags_and_the_first_stays(tags: list[str], step: int) -> None:
    drawn = draw(1, Purpose.INSTANCE, step, 0)
    result = shuffled(" , ".join(tags) + ",", drawn).split(", ")
    assert result[0] == tags[0].strip()
    assert Counter(result) == Counter(tag.strip() for tag in tags)
    assert shuffled(", ".join(tags), drawn) == shuffled(", ".join(tags), drawn)


def test_tags_get_every_order() -> None:
    seen = Counter(shuffled("sks, a, b, c", draw(0, Purpose.INSTANCE, step, 0)) for step in range(600))
    assert len(seen) == 6
    assert min(seen.values()) > 60


@pytest.mark.parametrize("caption", ["", ",", "one", "one, "])
def test_captions_with_nothing_to_shuffle(caption: str) -> None:
    assert shuffled(caption, draw(0, Purpose.INSTANCE, 0, 0)) == caption.strip(", ")


def test_dropout_leaves_out_its_share_and_templates_are_drawn_evenly() -> None:
    captions = Captions.alike(["a {}", "b {}", "c {}"], 2)
    plain = [captions.of(1, draw(0, Purpose.INSTANCE, step, 3)) for step in range(900)]
    assert min(Counter(plain).values()) > 240
    dropping = Captions(captions.choices, dropout=0.25)
    kept = [dropping.of(1, draw(0, Purpose.INSTANCE, step, 3)) for step in range(900)]
    assert 180 < kept.count("") < 270
    assert all(one in ("", other) for one, other in zip(kept, plain, strict=True)), "dropping shifts no other draw"


def test_one_caption_needs_no_draw_and_pictures_have_their_own() -> None:
    captions = Captions((("first",), ("second, x",)))
    assert [captions.of(index, draw(0, Purpose.INSTANCE, 7, 7)) for index in (0, 1)] == ["first", "second, x"]


@pytest.mark.parametrize(("chunks", "kept"), [(1, "a b c"), (2, "a b c d e f"), (3, "a b c d e f g")])
def test_what_is_read_of_a_long_caption(chunks: int, kept: str) -> None:
    assert kept_part("a b c d e f g", chunks, lambda text: -(-len(text.split()) // 3)) == kept
