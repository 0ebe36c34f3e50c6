"""A real API server with the project's CRDs."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import control_plane, kind
from support.need import missing, why_no_kind
from support.operating import ChartRights, Operator, Place, at_work, placed


@pytest.fixture(scope="session")
def api_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Path of a kubeconfig for an API server that has the CRDs of crds/."""
    folder = tmp_path_factory.mktemp("api-server")
    with ExitStack() as stack:
        if program := control_plane.program():
            kubeconfig = stack.enter_context(control_plane.running(program, folder))
        elif reason := why_no_kind():
            missing(f"no API server: FINETUNE_CONTROL_PLANE names no program, and {reason}")
        else:
            kubeconfig = stack.enter_context(kind.running(request, folder))
        control_plane.install_definitions(kubeconfig)
        yield kubeconfig


@pytest.fixture(scope="session")
def operator(api_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator, at work on that API server with the rights that the chart gives it."""
    folder = tmp_path_factory.mktemp("operator")
    port = control_plane.free_port()
    with at_work(Operator(ChartRights(api_server, folder).path, folder, progress_port=port)) as running:
        yield running


@pytest.fixture
def place(api_server: Path, operator: Operator) -> Iterator[Place]:
    """A namespace and a profile for one test."""
    with placed(api_server, f"contract-{secrets.token_hex(4)}") as found:
        yield found


@pytest.fixture
def own_place(api_server: Path) -> Iterator[Place]:
    """As `place`, with a class of its own: its jobs wait for the operators that the test itself brings."""
    name = f"own-{secrets.token_hex(4)}"
    with placed(api_server, name, operator_class=name) as found:
        yield found


@pytest.fixture
def own_rights(api_server: Path, own_place: Place, tmp_path: Path) -> ChartRights:
    """What the chart gives to a release that serves that class."""
    return ChartRights(api_server, tmp_path, own_place.name, operatorClass=own_place.operator_class)
