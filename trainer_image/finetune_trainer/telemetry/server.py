"""GET /metrics, /progress and /healthz, from a thread beside the training."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from finetune_trainer.errors import RunError
from finetune_trainer.telemetry.board import Board

logger = logging.getLogger(__name__)


@contextmanager
def serving(port: int, board: Board, registry: CollectorRegistry) -> Iterator[int]:
    """Serves while the block runs; yields the port, which the system chooses for port 0.

    Raises:
        RunError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is http.server's
            path = self.path.partition("?")[0]
            if path == "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(encode(registry), content_type)
            elif path == "/progress":
                body = board.progress().model_dump_json(by_alias=True, exclude_none=True)
                self._answer(body.encode(), "application/json")
            elif path == "/healthz":
                self._answer(b"ok\n", "text/plain; charset=utf-8")
            else:
                self.send_error(404)

        def _answer(self, body: bytes, content_type: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A scrape every few seconds is no news."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        # IPv4 and IPv6 alike: a pod may have only one of them
        address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

        def server_bind(self) -> None:
            if self.address_family == socket.AF_INET6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

        def handle_error(self, request: object, client_address: object) -> None:
            """A reader that hung up first is no news either; the rest goes to the log, not to standard error."""
            if not isinstance(sys.exception(), ConnectionError):
                logger.exception("cannot answer %s", client_address)

    try:
        server = Server(("", port), Handler)
    except OSError as error:
        raise RunError(f"port {port} cannot be served ({error.strerror}); set FINETUNE_PORT to a free one") from error
    thread = threading.Thread(target=server.serve_forever, name="telemetry", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
