"""Links between documents lead somewhere: to a file, and to a heading where they name one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md"), *ROOT.glob("charts/**/*.md")}
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def headings(text: str) -> set[str]:
    """As the anchors that GitHub makes of them."""
    titles = (line.lstrip("#").strip().lower() for line in text.splitlines() if line.startswith("#"))
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    lost = []
    for link in LINK.findall(document.read_text()):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if "://" in link:
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in headings(target.read_text())):
            lost.append(link)
    assert lost == []


def test_what_people_look_for_is_found_from_the_front_door() -> None:
    """Every document of docs/ is named by the README or by the map of the house."""
    doors = (ROOT / "README.md").read_text() + (ROOT / "docs/architecture.md").read_text()
    named = {Path(link.partition("#")[0]).name for link in LINK.findall(doors)}
    assert [file.name for file in (ROOT / "docs").glob("*.md") if file.name not in named | {"architecture.md"}] == []
