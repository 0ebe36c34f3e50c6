"""What a library raises, in messages of ours."""

from __future__ import annotations

import pytest
from finetune_trainer.errors import DataError, Interrupted, first_line, unreadable


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("3 tensors are missing\nand more"), "3 tensors are missing"),
        (ValueError("\n  indented\n"), "indented"),
        (KeyError(), "KeyError"),
        (MemoryError(" "), "MemoryError"),
        (OSError("x" * 1000), "x" * 300),
    ],
)
def test_the_first_line_says_what_is_wrong(error: Exception, words: str) -> None:
    assert first_line(error) == words
    with pytest.raises(DataError) as caught, unreadable("baseModel: unet/", "fetch it anew"):
        raise error
    assert str(caught.value) == f"baseModel: unet/ cannot be read: {words}; fetch it anew"
    assert caught.value.__cause__ is error


def test_what_is_no_broken_file_is_not_called_one() -> None:
    with unreadable("baseModel: unet/", "fetch it anew"):
        pass
    with pytest.raises(KeyboardInterrupt), unreadable("baseModel: unet/", "fetch it anew"):
        raise KeyboardInterrupt
    with pytest.raises(Interrupted, match=r"^stopped$"), unreadable("baseModel: unet/", "fetch it anew"):
        raise Interrupted("stopped")
