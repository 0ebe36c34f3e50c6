"""Captions that lie beside the pictures: where each is found, and what is wrong with those that are not.

Everything that is wrong is said at once, with the files' names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.dataset import CaptionsSpec

from finetune_trainer.data.pictures import MAX_LISTED, Picture, PictureSet, files_below
from finetune_trainer.errors import DataError

METADATA = "metadata.jsonl"
MAX_REPEATS = 1000
FOLDER_NAME = re.compile(r"([0-9]+)_(.+)", re.DOTALL)


@dataclass(frozen=True)
class Captioned:
    """What a picture is called, and how often a pass shows it."""

    caption: str | None
    """None: it is called by the method's prompt."""
    repeats: int = 1


def read_captions(pictures: PictureSet, spec: CaptionsSpec) -> tuple[Captioned, ...]:
    """One for each picture, in order.

    - Prompt: no captions of their own.
    - Sidecar: subject.txt beside subject.png; several lines are one caption.
    - Jsonl: lines {"file_name": …, "text": …} of metadata.jsonl, file names relative to its folder (the convention of
      Hugging Face's ImageFolder); "caption" is read like "text", other keys are passed over.
    - Folder: pictures in "20_sks dog" are called "sks dog" and count 20 times, as in sd-scripts; a .txt beside a
      picture goes before the folder's name.

    Raises:
        DataError: a picture without a caption, a caption without a picture, or a file that cannot be read.
    """
    if spec.source == "Prompt":
        return (Captioned(None),) * len(pictures)
    if pictures.folder is None:
        raise ValueError("captions are looked for where the pictures were found; these were listed one by one")
    files, shown = files_below(pictures.folder), pictures.pictures
    if spec.source == "Jsonl":
        captions = _from_jsonl(files, shown, pictures.folder)
    else:
        captions = _from_sidecars(files, shown, pictures.folder)
    if spec.source == "Folder":
        return _from_folders(captions, shown, pictures.folder)
    missing = [_name(picture.path, pictures.folder) for picture in shown if not captions.get(picture.path)]
    if missing:
        where = "beside each, " + _name(shown[0].path.with_suffix(".txt"), pictures.folder)
        if spec.source == "Jsonl":
            where = f'in {METADATA}, {{"file_name": "{missing[0]}", "text": "…"}}'
        raise DataError(
            f"dataset.captions: {listed(missing)} without a caption; write one {where}, or use "
            "captions.source: Prompt. For samples without a caption there is captions.dropout"
        )
    return tuple(Captioned(captions[picture.path]) for picture in shown)


def digest_of(captions: Sequence[Captioned]) -> str:
    """SHA-256 of all captions and repeats, in order."""
    text = json.dumps([(one.caption, one.repeats) for one in captions])
    return hashlib.sha256(text.encode()).hexdigest()


def listed(names: Sequence[str]) -> str:
    """The first ten and how many more."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def parse_folder_name(name: str) -> tuple[int, str] | None:
    """Repeats and caption of "20_sks dog"; None where the name has another form."""
    match = FOLDER_NAME.fullmatch(name)
    if match is None or not match[2].strip():
        return None
    # more digits are more than any limit, and int() refuses thousands of them
    return int(match[1][:20]), " ".join(match[2].split())


def parse_jsonl(text: str, name: str) -> list[tuple[int, str, str]]:
    """Line number, file name and caption of each line that is not blank.

    Raises:
        DataError: a line is no JSON object with file_name and text; says which.
    """
    found = []
    # not splitlines(): JSON may hold U+2028, and only a newline ends a record
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"dataset.captions: {name}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON ({error}); write one object a line") from error
        if not isinstance(record, dict):
            raise DataError(f'{where} is not an object; write {{"file_name": "a.png", "text": "…"}}')
        file_name, caption = record.get("file_name"), record.get("text", record.get("caption"))
        for key, value in (("file_name", file_name), ("text", caption)):
            if not isinstance(value, str) or not value.strip():
                raise DataError(f'{where} has no {key}; write {{"file_name": "a.png", "text": "…"}}')
        found.append((number, file_name, _one_line(caption)))
    return found


def _from_sidecars(files: Iterable[Path], shown: Sequence[Picture], folder: Path) -> dict[Path, str]:
    texts = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
    stems = {picture.path.with_suffix("") for picture in shown}
    lonely = [_name(path, folder) for stem, path in sorted(texts.items()) if stem not in stems]
    if lonely:
        raise DataError(
            f"dataset.captions: {listed(lonely)} without a picture of that name; rename it after its picture, or "
            "remove it"
        )
    return {
        picture.path: _one_line(_read(texts[stem], folder))
        for picture in shown
        if (stem := picture.path.with_suffix("")) in texts
    }


def _from_jsonl(files: Iterable[Path], shown: Sequence[Picture], folder: Path) -> dict[Path, str]:
    tables = [path for path in files if path.name == METADATA]
    if not tables:
        raise DataError(
            f'dataset.captions: no {METADATA} found; write one with a line {{"file_name": "a.png", "text": "…"}} for '
            "each picture, or use another captions.source"
        )
    known = {picture.path for picture in shown}
    captions: dict[Path, str] = {}
    lines: dict[Path, str] = {}
    lonely = []
    for table in tables:
        for number, file_name, caption in parse_jsonl(_read(table, folder), _name(table, folder)):
            where = f"{_name(table, folder)}, line {number}"
            path = _below(table.parent, file_name)
            if path not in known:
                lonely.append(f"{file_name} ({where})")
            elif path in lines:
                raise DataError(
                    f"dataset.captions: {where}: {file_name} has a caption in {lines[path]} already; remove one"
                )
            else:
                captions[path], lines[path] = caption, where
    if lonely:
        raise DataError(
            f"dataset.captions: {listed(lonely)}: there is no such picture; file names are relative to {METADATA}. "
            "Correct or remove the line"
        )
    return captions


def _from_folders(captions: dict[Path, str], shown: Sequence[Picture], folder: Path) -> tuple[Captioned, ...]:
    found: list[Captioned] = []
    outside: list[str] = []
    for picture in shown:
        parents = picture.path.relative_to(folder).parts[:-1]
        # the innermost folder that says something
        parsed = next((name for part in reversed(parents) if (name := parse_folder_name(part)) is not None), None)
        if parsed is None:
            outside.append(_name(picture.path, folder))
            continue
        repeats, caption = parsed
        if not 1 <= repeats <= MAX_REPEATS:
            raise DataError(
                f"dataset.captions: {_name(picture.path.parent, folder)}: repeats are 1 to {MAX_REPEATS}; rename the "
                'folder, such as "20_sks dog"'
            )
        found.append(Captioned(captions.get(picture.path) or caption, repeats))
    if outside:
        raise DataError(
            f"dataset.captions: {listed(outside)} in no folder that gives repeats and caption; move the pictures "
            'into one such as "20_sks dog", or use another captions.source'
        )
    return tuple(found)


def _read(path: Path, folder: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"dataset.captions: {_name(path, folder)} is not UTF-8 ({error.reason} at byte {error.start}); save it "
            "as UTF-8"
        ) from error


def _below(folder: Path, name: str) -> Path:
    return folder.joinpath(*(part for part in Path(name).parts if part != "."))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
