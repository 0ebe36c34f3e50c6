"""docs/operator.md says which phases follow which, and which reasons conditions have. Here stands what was seen."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import finetune_operator
import pytest

from chaos.campaign import Campaign

DOCS = (Path(__file__).parents[2] / "docs/operator.md").read_text()
ARROW = re.compile(r"^  (\S+) --> (\S+?)(?::.*)?$", re.MULTILINE)
ROW = re.compile(r"^\| (?:(\w+) )?\| (True|False|Unknown) \| ([^|]+) \|", re.MULTILINE)
ENOUGH = 500
"""Schedules that show every transition of the diagram."""
LIVE = {"Pending", "Queued", "Starting", "Running", "Suspended"}


def drawn() -> set[tuple[str, str]]:
    """The arrows of the state diagram."""
    diagram = DOCS.split("stateDiagram-v2", 1)[1].split("```", 1)[0]
    return set(ARROW.findall(diagram))


def listed() -> set[tuple[str, str, str]]:
    """(type, status, reason) of the table of conditions."""
    table = DOCS.split("## Conditions", 1)[1].split("\n##", 1)[0]
    found, kind = set(), ""
    for name, truth, reasons in ROW.findall(table):
        kind = name or kind
        found |= {(kind, truth, reason.strip()) for reason in reasons.split(",")}
    failures = {
        ("Succeeded", "False", reason) for type_, truth, reason in found if (type_, truth) == ("Failed", "True")
    }
    return found - {("Succeeded", "False", "as of Failed")} | failures


def several_steps_as_one(before: str, after: str) -> bool:
    """What the diagram leaves out, as the text below it says: a live job, or one not yet seen, whose steps between were
    missed."""
    return before in LIVE | {"[*]"} and after != "[*]"


def test_what_was_seen_is_drawn(campaign: Campaign) -> None:
    unknown = {arrow for arrow in campaign.phases.keys() - drawn() if not several_steps_as_one(*arrow)}
    assert not unknown, f"these transitions of status.phase are not in docs/operator.md: {sorted(unknown)}"


def test_what_happens_often_is_drawn(campaign: Campaign) -> None:
    """A step that was missed is the exception: one in fifty of the ways out of its phase."""
    for (before, after), times in campaign.phases.items():
        ways = sum(count for (start, _), count in campaign.phases.items() if start == before)
        if (before, after) not in drawn() and campaign.schedules >= ENOUGH:
            assert times <= ways / 50, f"{before} --> {after} was seen {times} times of {ways}, and is not drawn"


def test_what_is_drawn_was_seen(campaign: Campaign) -> None:
    if campaign.schedules < ENOUGH:
        pytest.skip(f"fewer than {ENOUGH} schedules need not show everything")
    unseen = drawn() - campaign.phases.keys()
    assert not unseen, f"docs/operator.md draws transitions that were never seen: {sorted(unseen)}"


def test_the_reasons_that_were_seen_are_listed(campaign: Campaign) -> None:
    unknown = campaign.reasons - listed()
    assert not unknown, f"these reasons are not in the table of docs/operator.md: {sorted(unknown)}"


def test_the_reasons_that_are_listed_are_the_operators() -> None:
    words = set()
    for file in Path(finetune_operator.__file__).parent.rglob("*.py"):
        nodes = ast.walk(ast.parse(file.read_text()))
        words |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    unknown = {reason for _, _, reason in listed()} - words
    assert not unknown, f"docs/operator.md lists reasons that the operator does not know: {sorted(unknown)}"
