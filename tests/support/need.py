"""What a test needs and this machine may not have: skipped with the reason on a laptop, a failure in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import NoReturn

import pytest


def missing(reason: str) -> NoReturn:
    """Skips the test with ``reason``; fails it with CI=true, where everything has to run."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"CI=true skips nothing, but: {reason}", pytrace=False)
    pytest.skip(reason)


def why_no_kind() -> str | None:
    """None where a kind cluster can be made here, otherwise what stands in the way."""
    absent = [tool for tool in ("docker", "kind", "kubectl", "helm") if shutil.which(tool) is None]
    if absent:
        return f"a kind cluster needs {', '.join(absent)} on the PATH"
    engine = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    if engine.returncode:
        return f"the Docker engine does not answer: {engine.stderr.strip()[:200]}"
    return None
