"""A stand-in for the Hugging Face Hub: the few endpoints that huggingface_hub calls to download a model."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPO = "someone/a-model"
GATED = "someone/gated"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_the-token-that-must-never-be-shown"


@dataclass
class Hub:
    """One repository, `someone/a-model`, with a branch `main`; and `someone/gated`, which nobody may read."""

    endpoint: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    """Only with TOKEN."""
    failing: bool = False
    """Every request ends in 500."""
    asked_for: list[str] = field(default_factory=list)
    """Files whose content was sent."""


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    state = Hub(files=files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._route()

        def do_HEAD(self) -> None:
            self._route()

        def _route(self) -> None:
            authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if state.failing:
                self._answer(500, b"{}")
            elif GATED in self.path:
                self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif REPO not in self.path or (state.private and not authorised):
                self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif match := re.fullmatch(f"/api/models/{REPO}(?:/revision/(.+))?", self.path):
                self._info(match[1] or "main")
            elif match := re.fullmatch(f"/{REPO}/resolve/{COMMIT}/(.+)", self.path):
                self._file(match[1])
            else:
                self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

        def _info(self, revision: str) -> None:
            if revision not in ("main", COMMIT):
                self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return
            info = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": name} for name in state.files]}
            self._answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

        def _file(self, name: str) -> None:
            data = state.files[name]
            if self.command == "GET":
                state.asked_for.append(name)
            self._answer(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Requests are no news."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
