"""What is imported at the start is not looked through for garbage, then or later."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from finetune_trainer.importing import without_collections


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_within_and_what_there_is_never_looked_through_again() -> None:
    frozen = gc.get_freeze_count()
    with without_collections():
        assert not gc.isenabled()
        kept = [[number] for number in range(10_000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(kept)
    assert not any(one is kept[0] for one in gc.get_objects()), "the collector no longer knows of it"


def test_a_failed_import_does_not_leave_it_off() -> None:
    with pytest.raises(ModuleNotFoundError), without_collections():
        import finetune_trainer.no_such_module  # noqa: F401 - it is not there
    assert gc.isenabled()


def test_who_turned_collections_off_keeps_them_off() -> None:
    gc.disable()
    with without_collections():
        """Nothing to import."""
    assert not gc.isenabled()
