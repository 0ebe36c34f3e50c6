"""The rules of what is kept on disk: bounded, the least recently used goes, whole files, several pods at once."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from finetune_trainer.data.disk_cache import ABANDONED_SECONDS, MOST, DiskCache, Entry, bound, to_go

GIB = 2**30


@pytest.mark.parametrize(
    ("entries", "limit", "keep_since", "gone"),
    [
        ({}, 100, 99, ""),
        ({"a": (50, 1), "b": (50, 2)}, 100, 99, ""),
        ({"a": (50, 1), "b": (51, 2)}, 100, 99, "a"),
        ({"a": (50, 9), "b": (51, 2)}, 100, 99, "b"),
        # a tenth of the bound is freed with it
        ({"a": (1, 1), "b": (5, 2), "c": (4, 3), "d": (1, 4), "e": (90, 5)}, 100, 99, "abcd"),
        ({"a": (200, 1)}, 100, 99, "a"),
        # what is in use stays, and so does all that was used later
        ({"a": (50, 1), "b": (50, 5), "c": (50, 9)}, 100, 4, "a"),
        ({"a": (500, 5), "b": (1, 6)}, 100, 4, ""),
        # of the same time, by name: all pods agree
        ({"b": (60, 1), "a": (60, 1)}, 100, 99, "a"),
        ({"a": (3, 1)}, 0, 99, "a"),
    ],
    ids=str,
)
def test_the_least_recently_used_go(
    entries: dict[str, tuple[int, int]], limit: int, keep_since: float, gone: str
) -> None:
    found = [Entry(name, size, used) for name, (size, used) in entries.items()]
    assert "".join(entry.name for entry in to_go(found, limit, keep_since)) == gone


@pytest.mark.parametrize(("disk", "expected"), [(0, 0), (10 * GIB, 2 * GIB), (80 * GIB, MOST), (4000 * GIB, MOST)])
def test_a_cache_suits_its_disk(disk: int, expected: int) -> None:
    assert bound(disk) == expected


def put(cache: DiskCache, name: str, text: str) -> None:
    cache.write(name, lambda file: file.write_text(text))


def age(cache: DiskCache, name: str, seconds: float) -> None:
    then = cache.path(name).stat().st_mtime - seconds
    os.utime(cache.path(name), (then, then))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_read_last_stays_longest(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "cache", limit=100)
    for number, name in enumerate("abcd"):
        put(cache, name, name * 25)
        age(cache, name, 1000 - number)
    assert cache.read("a", Path.read_text) == "a" * 25
    put(cache, "e", "e" * 25)
    assert names(tmp_path / "cache") == ["a", "d", "e"], "b for the bound, and c for the tenth"
    assert cache.read("b", Path.read_text) is None


def test_what_other_pods_wrote_counts(tmp_path: Path) -> None:
    one, other = (DiskCache(tmp_path, limit=1000) for _ in range(2))
    for number in range(60):
        put((one, other)[number % 2], f"{number:02}", "x" * 50)
        age(one, f"{number:02}", 1000 - number)
        held = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert held <= 1000 + 2 * 1000 // 16 + 100
    assert names(tmp_path)[-1] == "59"


def test_a_folder_is_one_entry_and_not_taken_from_who_uses_it(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, limit=10, in_use_seconds=600)
    for number, name in enumerate(("old", "used", "new")):
        for index in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{index}.png").write_text("x" * 30)
        age(cache, name, 3000 - number)
    cache.touch("used")
    cache.sweep()
    assert names(tmp_path) == ["used"]
    assert names(tmp_path / "used") == ["0.png", "1.png"]


def test_half_written_files_are_nobodys_entries(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, limit=10)
    (tmp_path / "a.0.tmp").write_text("x" * 999)
    (tmp_path / "b.0.tmp").write_text("x" * 999)
    age(cache, "b.0.tmp", ABANDONED_SECONDS + 60)
    put(cache, "c", "cc")
    assert names(tmp_path) == ["a.0.tmp", "c"], "one is being written, the other one never will be"


def test_what_a_killed_writer_left_in_a_folder_goes_and_the_folder_stays(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, limit=100)
    (tmp_path / "folder").mkdir()
    for name in ("0.png", "1.png.a.tmp", "2.png.b.tmp"):
        (tmp_path / "folder" / name).write_text("x" * 60)
    age(cache, "folder/1.png.a.tmp", ABANDONED_SECONDS + 60)
    cache.sweep()
    assert names(tmp_path / "folder") == ["0.png", "2.png.b.tmp"], "the other one may still be written"


def refuse(file: Path) -> None:
    raise ValueError("not what it should be")


def test_whatever_goes_wrong_costs_time_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    cache = DiskCache(blocked / "cache")
    for _ in range(3):
        put(cache, "a", "a")
        assert cache.read("a", Path.read_text) is None
    assert len([line for line in caplog.messages if "is not kept" in line]) == 1
    sound = DiskCache(tmp_path / "sound")
    put(sound, "a", "a")
    assert sound.read("a", refuse) is None
    assert sound.read("a", Path.read_text) == "a"
    sound.write("b", lambda file: (file.write_text("half"), refuse(file)))
    assert names(tmp_path / "sound") == ["a"]


def write_often(folder: Path, letter: str, go: Callable[[], object]) -> None:
    cache = DiskCache(folder, limit=3_000_000)
    go()
    for number in range(40):
        # the same name means the same content; the letters only show that nothing is mixed
        cache.write("shared", lambda file: file.write_text(letter * 200_000))
        cache.write(f"{letter}{number}", lambda file: file.write_text(letter * 200_000))
        found = cache.read("shared", Path.read_text)
        assert found is None or (len(found), len(set(found))) == (200_000, 1)


def test_two_processes_write_one_key(tmp_path: Path) -> None:
    """And remove from one folder: what is read is always whole."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    writers = [context.Process(target=write_often, args=(tmp_path, letter, barrier.wait)) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]
    assert DiskCache(tmp_path).read("shared", Path.read_text) in {"a" * 200_000, "b" * 200_000}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3_000_000 * (1 + 2 / 16) + 400_000
