"""A TCP wire to a server of this machine that can be held in the middle of a request, cut, mended and made slow."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

CHUNK = 16 << 10


class Wire:
    """Passes bytes on between `endpoint` and the server. What the client sends is looked at, never changed."""

    def __init__(self, server: str) -> None:
        self._server = (str(urlsplit(server).hostname), urlsplit(server).port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.held = threading.Event()
        """Set while bytes are held back."""
        self.sent: list[bytes] = []
        """First line of each request that the client sent, as far as it began a packet."""
        self.bytes_per_second: float | None = None
        """Of each connection, from the client to the server."""
        self._hold_at: bytes | None = None
        self._go_on = threading.Event()
        self._is_cut = False
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, text: str) -> None:
        """The next packet of the client with `text` in it is held back, and all that follows on its connection."""
        self.held.clear()
        self._go_on.clear()
        self._hold_at = text.encode()

    def release(self) -> None:
        """What was held goes on, if anybody is left to send it."""
        self._hold_at = None
        self._go_on.set()
        self.held.clear()

    def cut(self) -> None:
        """Every connection breaks, and so does every new one."""
        self._is_cut = True
        for each in list(self._open):
            _close(each)

    def mend(self) -> None:
        """New connections work again."""
        self._is_cut = False

    def close(self) -> None:
        self.release()
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self._is_cut:
                    _close(client)
                    continue
                server = socket.create_connection(self._server)
                self._open |= {client, server}
                threading.Thread(target=self._carry, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._carry, args=(server, client, False), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, outwards: bool) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                if outwards:
                    self._look(data)
                    if self.bytes_per_second is not None:
                        time.sleep(len(data) / self.bytes_per_second)
                target.sendall(data)
        for each in (source, target):
            _close(each)
            self._open.discard(each)

    def _look(self, data: bytes) -> None:
        line = data.partition(b"\r\n")[0]
        if line.endswith(b"HTTP/1.1"):
            self.sent.append(line)
        if self._hold_at is not None and self._hold_at in data:
            self._hold_at = None
            self.held.set()
            self._go_on.wait(120)


def _close(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()


@contextmanager
def wire_to(server: str) -> Iterator[Wire]:
    wire = Wire(server)
    try:
        yield wire
    finally:
        wire.close()
