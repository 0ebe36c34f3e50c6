"""Saving models that nothing is wrapped around."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def plain_saving() -> Iterator[None]:
    """Within, `save_pretrained` does not import DeepSpeed. transformers asks accelerate what a model is wrapped in, and
    accelerate imports all of DeepSpeed, where it is installed, to be able to tell: seconds for every training that
    exports a text encoder, and a line on the standard output."""
    from accelerate.utils import other

    asked = other.is_deepspeed_available
    other.is_deepspeed_available = lambda: False
    try:
        yield
    finally:
        other.is_deepspeed_available = asked
