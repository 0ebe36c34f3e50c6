"""Processes that train together pass over the same steps, whichever of them could not compute it."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from support.groups import in_group
from support.skips import POISONED, step_in_group


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        yield executor


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_one_cannot_compute_nobody_applies(precision: str, pool: ProcessPoolExecutor) -> None:
    first, second = in_group(pool, 2, step_in_group, precision)
    # the scale of fp16 begins too large for this toy
    skipped = [step == POISONED or (step == 0 and precision == "fp16") for step in range(5)]
    assert first.skipped == second.skipped == skipped
    assert first.changed == second.changed == [not one for one in skipped]
    assert [loss for loss in first.losses if loss == loss] == [loss for loss in second.losses if loss == loss]
    assert first.resumed == second.resumed == first.losses[-2:]
    assert first.scales == ([32768.0] * 2 + [16384.0] * 3 if precision == "fp16" else [None] * 5)
