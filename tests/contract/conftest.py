"""A real API server with the project's CRDs."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support import kind
from support.need import missing, why_no_kind
from support.operating import ChartRights, Operator, Place

ROOT = Path(__file__).parents[2]
PORTS = range(17100, 18000, 10)


def control_plane() -> Path | None:
    """A program `control-plane up|down DIR` that runs an API server without Docker, where there is one."""
    named = os.environ.get("FINETUNE_CONTROL_PLANE")
    program = Path(named) if named else ROOT.parent / "shared/cluster/control-plane"
    return program if os.access(program, os.X_OK) else None


def free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def without_docker(program: Path, folder: Path) -> Iterator[Path]:
    """etcd, API server and controller manager as plain processes, on three ports in a row from a free one."""
    port = next(p for p in PORTS if all(free(p + i) for i in range(3)))
    environment = os.environ | {"PORT": str(port)}
    # Into a file: the processes that it leaves running would keep a pipe open.
    log = folder / "up.log"
    try:
        with log.open("w") as output:
            command = [program, "up", folder / "state"]
            started = subprocess.run(command, env=environment, stdout=output, stderr=output, check=False, timeout=180)
        if started.returncode:
            pytest.fail(f"{program} up ended with {started.returncode}:\n{log.read_text()[-2000:]}", pytrace=False)
        yield folder / "state/kubeconfig"
    finally:
        subprocess.run([program, "down", folder / "state"], check=True, timeout=60)


@pytest.fixture(scope="session")
def api_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Path of a kubeconfig for an API server that has the CRDs of crds/."""
    folder = tmp_path_factory.mktemp("api-server")
    with ExitStack() as stack:
        if program := control_plane():
            kubeconfig = stack.enter_context(without_docker(program, folder))
        elif reason := why_no_kind():
            missing(f"no API server: FINETUNE_CONTROL_PLANE names no program, and {reason}")
        else:
            kubeconfig = stack.enter_context(kind.running(request, folder))
        kubectl = ["kubectl", "--kubeconfig", kubeconfig]
        subprocess.run([*kubectl, "apply", "--server-side", "-f", ROOT / "crds"], check=True, capture_output=True)
        subprocess.run(
            [*kubectl, "wait", "--for=condition=Established", "--timeout=60s", "-f", ROOT / "crds"],
            check=True,
            capture_output=True,
        )
        yield kubeconfig


@pytest.fixture(scope="session")
def operator(api_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator, at work on that API server with the rights that the chart gives it."""
    folder = tmp_path_factory.mktemp("operator")
    port = next(p for p in PORTS if free(p))
    running = Operator(ChartRights(api_server, folder).path, folder, progress_port=port)
    running.start()
    yield running
    code = running.stop()
    print(running.log.read_text()[-5000:])
    assert code == 0, "the operator leaves in order"


@pytest.fixture
def place(api_server: Path, operator: Operator) -> Iterator[Place]:
    """A namespace and a profile for one test."""
    found = Place(api_server, f"contract-{secrets.token_hex(4)}")
    found.make()
    yield found
    found.clear()
