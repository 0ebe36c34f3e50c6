"""What an image installs: prints the requirements of one extra of pyproject.toml, one a line.

``requirements.py trainer``            the requirements as pyproject.toml has them
``requirements.py trainer --pinned``   these and all that they need, in the versions installed here
``requirements.py build-system``       what building the project's own wheel needs
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def declared(extra: str) -> list[str]:
    """The project's own requirements and those of ``extra``; raises KeyError for an extra that does not exist."""
    pyproject = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    if extra == "build-system":
        return list(pyproject["build-system"]["requires"])
    project = pyproject["project"]
    return [*project["dependencies"], *project["optional-dependencies"][extra]]


def pinned(requirements: Iterable[str]) -> list[str]:
    """``name==version`` for every distribution that ``requirements`` reach in the running environment.

    Raises PackageNotFoundError, which names the distribution, for one that is not installed.
    """
    # Imported here: without --pinned this runs in a bare image, which has the standard library only.
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(Requirement(text), "") for text in requirements]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            distribution = metadata.distribution(name)
            pins[name] = f"{name}=={distribution.version}"
            todo += [(Requirement(text), wanted) for text in distribution.requires or []]
    return [pins[name] for name in sorted(pins)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extra")
    parser.add_argument("--pinned", action="store_true")
    arguments = parser.parse_args()
    requirements = declared(arguments.extra)
    print("\n".join(pinned(requirements) if arguments.pinned else requirements))


if __name__ == "__main__":
    main()
