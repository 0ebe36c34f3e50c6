"""GET /progress of a trainer. What answers is a user's pod, so nothing it says is taken on trust."""

from __future__ import annotations

import aiohttp
from finetune_api.progress import Progress
from pydantic import ValidationError

from finetune_operator.connection import Connection
from finetune_operator.projections import PodState
from finetune_operator.resources import PODS

TIMEOUT_SECONDS = 2.0
LARGEST_ANSWER = 64 * 1024


class NoProgressError(Exception):
    """No usable answer; the message is one of a few fixed words, never what the pod sent."""


class ProgressClient:
    """Asks trainers, without following redirects, proxies or cookies."""

    def __init__(self, port: int, proxy: Connection | None = None) -> None:
        """With `proxy` by way of the API server's proxy, for an operator that cannot reach pods itself; that needs the
        right to `get` pods/proxy."""
        self._port = port
        self._proxy = proxy
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, pod: PodState) -> Progress:
        """What the pod's trainer says. Raises NoProgressError."""
        try:
            status, body = await self._get(*await self._target(pod))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NoProgressError("unreachable") from error
        if status != 200:
            raise NoProgressError("refused")
        if len(body) > LARGEST_ANSWER:
            raise NoProgressError("too_large")
        try:
            progress = Progress.model_validate_json(body)
        except ValidationError as error:
            raise NoProgressError("invalid") from error
        if progress.run_uid != pod.owner_uid or progress.pod_uid != pod.uid:
            raise NoProgressError("another_pod")
        if progress.step > progress.total_steps:
            raise NoProgressError("invalid")
        return progress

    async def _target(self, pod: PodState) -> tuple[str, dict[str, str]]:
        """URL and headers."""
        if self._proxy is None:
            host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
            return f"http://{host}:{self._port}/progress", {}
        path = f"{PODS.path(pod.key.namespace, f'{pod.key.name}:{self._port}', 'proxy')}/progress"
        return self._proxy.url(path), await self._proxy.credentials()

    async def _get(self, url: str, headers: dict[str, str]) -> tuple[int, bytes]:
        if self._session is None:
            ssl = True if self._proxy is None else self._proxy.ssl
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(limit=200, force_close=True, ssl=ssl),
                auto_decompress=False,
                trust_env=False,
            )
        async with self._session.get(url, headers=headers, allow_redirects=False) as response:
            body = bytearray()
            async for chunk in response.content.iter_chunked(16 * 1024):
                body += chunk
                if len(body) > LARGEST_ANSWER:
                    break
            return response.status, bytes(body)
