"""An API server without Docker, where the machine has a program for it: PROGRAM up DIR [--kwok], PROGRAM down DIR."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
PORTS = range(17100, 18000, 10)
_OTHERS = iter(range(18000, 19000))


class NoControlPlaneError(Exception):
    """The program could not bring it up; the message ends with what it said."""


def program() -> Path | None:
    """The program that FINETUNE_CONTROL_PLANE names, or the one beside the checkout; None where there is none."""
    named = os.environ.get("FINETUNE_CONTROL_PLANE")
    found = Path(named) if named else ROOT.parent / "shared/cluster/control-plane"
    return found if os.access(found, os.X_OK) else None


def free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nobody has and that no other call gets: whoever asked may bind it only much later."""
    return next(port for port in _OTHERS if free(port))


@contextmanager
def running(command: Path, folder: Path, *, kwok: bool = False) -> Iterator[Path]:
    """Path of a kubeconfig: etcd, API server, controller manager, scheduler (and KWOK, which pretends to be nodes) as
    plain processes, on three ports in a row from a free one. Their process IDs, in this order, stand in `pids` beside
    it. Raises NoControlPlaneError."""
    port = next(p for p in PORTS if all(free(p + i) for i in range(3)))
    environment = os.environ | {"PORT": str(port)}
    # Into a file: the processes that it leaves running would keep a pipe open.
    log = folder / "up.log"
    try:
        with log.open("w") as output:
            up = [command, "up", folder / "state", *(["--kwok"] if kwok else [])]
            started = subprocess.run(up, env=environment, stdout=output, stderr=output, check=False, timeout=180)
        if started.returncode:
            raise NoControlPlaneError(f"{command} up ended with {started.returncode}:\n{log.read_text()[-2000:]}")
        yield folder / "state/kubeconfig"
    finally:
        subprocess.run([command, "down", folder / "state"], check=True, timeout=60)


def install_definitions(kubeconfig: Path) -> None:
    """Applies crds/ and waits until the API server serves them."""
    kubectl = ["kubectl", "--kubeconfig", kubeconfig]
    crds = ["-f", ROOT / "crds"]
    subprocess.run([*kubectl, "apply", "--server-side", *crds], check=True, capture_output=True)
    wait = [*kubectl, "wait", "--for=condition=Established", "--timeout=60s", *crds]
    subprocess.run(wait, check=True, capture_output=True)
