"""The kind cluster of the tests: brought up by the script that people use, and taken away if it was not there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.need import missing, why_no_kind

ROOT = Path(__file__).parents[2]
NAME = os.environ.get("KIND_CLUSTER", "finetune")
FIRST = f"{NAME}-control-plane"
"""The node that stays: control plane, S3 server, Prometheus, operator. It runs pods too."""
SECOND = f"{NAME}-worker"
"""The node that a test may drain or take away."""


def in_node(node: str, *command: str) -> str:
    """Runs a program in a node, as root. Returns its output; raises AssertionError with what it said."""
    return _docker("exec", node, *command)


def freeze(node: str) -> None:
    """The node stops at once, without a word to anybody, as a machine that has lost its power or its network."""
    _docker("pause", node)


def thaw(node: str) -> None:
    """The node goes on where it stopped; nothing happens if it runs."""
    if _docker("inspect", "--format", "{{.State.Paused}}", node).strip() == "true":
        _docker("unpause", node)


def _docker(*command: str) -> str:
    done = subprocess.run(["docker", *command], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"docker {' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


def _exists() -> bool:
    known = subprocess.run(["kind", "get", "clusters"], capture_output=True, text=True, check=True)
    return NAME in known.stdout.split()


def _script(name: str, request: pytest.FixtureRequest) -> None:
    """Runs one of hack/kind, its words on the terminal: it says what it does and how long it takes."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(flush=True)
        done = subprocess.run([ROOT / "hack/kind" / name], check=False)
    if done.returncode:
        pytest.fail(f"hack/kind/{name} ended with {done.returncode}; its output says why", pytrace=False)


@contextmanager
def running(request: pytest.FixtureRequest, folder: Path) -> Iterator[Path]:
    """A cluster with everything in it; yields the path of a kubeconfig.

    One that was there before stays; one that was made here is deleted at the end, unless KEEP=1.
    """
    if reason := why_no_kind():
        missing(reason)
    made_here = not _exists()
    try:
        _script("up.sh", request)
        kubeconfig = folder / "kubeconfig"
        got = subprocess.run(["kind", "get", "kubeconfig", "--name", NAME], capture_output=True, check=True)
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_bytes(got.stdout)
        yield kubeconfig
    finally:
        if made_here and os.environ.get("KEEP") != "1":
            _script("down.sh", request)
