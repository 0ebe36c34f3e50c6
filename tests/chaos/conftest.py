"""The campaign is run once, for all that is asked about it."""

from __future__ import annotations

import os
import time

import pytest

from chaos.campaign import Campaign, run


@pytest.fixture(scope="session")
def campaign(pytestconfig: pytest.Config) -> Campaign:
    """FINETUNE_CHAOS_SCHEDULES schedules from seed FINETUNE_CHAOS_SEED on."""
    schedules = int(os.environ.get("FINETUNE_CHAOS_SCHEDULES") or 1000)
    first = int(os.environ.get("FINETUNE_CHAOS_SEED") or 0)
    reporter = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    shown, began = Campaign(), time.monotonic()
    for part in run(first, schedules):
        before = shown.schedules // 1000
        shown.add(part)
        if reporter is not None and shown.schedules // 1000 > before:
            reporter.write_line(
                f"{shown.schedules} schedules, {shown.calls} calls, {shown.virtual_seconds / 86400:.1f} days in "
                f"{time.monotonic() - began:.0f} s, {len(shown.broken)} broken"
            )
    return shown
