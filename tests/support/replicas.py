"""Operators behind proxies of their own, so that each one's requests are known and its faults are its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support import control_plane
from support.operating import ChartRights, Operator
from support.proxy import Proxy, Request
from support.waiting import eventually


@dataclass
class Replica:
    """One process, and the wire between it and the API server."""

    operator: Operator
    proxy: Proxy

    def first_write_after(self, moment: float) -> Request | None:
        """The first answered write that came after `moment` (monotonic seconds)."""
        return next((r for r in self.proxy.writes() if r.at > moment and r.status is not None), None)


@contextmanager
def replica(
    rights: ChartRights, upstream: Path, name: str, program: str | None = None, **settings: object
) -> Iterator[Replica]:
    """A running operator with these rights; killed at the end, if it is still there. `settings`: FINETUNE_OPERATOR_…"""
    environment = {f"FINETUNE_OPERATOR_{key.upper()}": str(value) for key, value in settings.items()}
    with Proxy(upstream) as proxy:
        operator = Operator(
            proxy.kubeconfig(rights.path),
            rights.path.parent,
            progress_port=control_plane.free_port(),
            name=name,
            settings=rights.environment | environment,
        )
        if program is not None:
            operator.program = program
        try:
            operator.start()
            yield Replica(operator, proxy)
        finally:
            print(operator.log.read_text()[-5000:])
            if operator.process is not None and operator.process.poll() is None:
                operator.kill()


def leader_of(replicas: list[Replica], seconds: float = 30) -> Replica:
    """The one that leads."""

    def ask() -> Replica:
        leading = [one for one in replicas if one.operator.leads()]
        assert len(leading) == 1, f"{len(leading)} operators lead"
        return leading[0]

    return eventually(ask, seconds=seconds)


def wait_for_write(one: Replica, after: float, seconds: float) -> float:
    """Seconds from `after` (monotonic) to this one's first answered write. Raises AssertionError after `seconds`."""
    while time.monotonic() < after + seconds:
        if found := one.first_write_after(after):
            return found.at - after
        time.sleep(0.05)
    raise AssertionError(f"no write within {seconds:.0f} s")
