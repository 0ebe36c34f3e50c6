"""HTTP to the API server. Where it is, its certificates and our token come from the official client; the requests go
straight through aiohttp, since that client takes several times the CPU of the request itself for walking over bodies
and for asking, in a thread, for a proxy each time."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Self
from urllib.request import getproxies_environment

import aiohttp
from kubernetes.aio import client as aio_client
from kubernetes.aio import config as aio_config
from kubernetes.aio.config.config_exception import ConfigException

CONNECTIONS = 100
TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    reason: str
    body: bytes


async def configuration() -> aio_client.Configuration:
    """In the cluster the pod's service account, elsewhere KUBECONFIG or ~/.kube/config."""
    settings = aio_client.Configuration()
    try:
        aio_config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]  # untyped there
    except ConfigException:
        await aio_config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]  # untyped there
    return settings


class Connection:
    """A pool of connections to one API server. Must be made while an event loop runs."""

    def __init__(self, settings: aio_client.Configuration) -> None:
        self._settings = settings
        self.ssl: ssl.SSLContext = aio_client.ApiClient(settings).rest_client.ssl_context
        """How the server is known, and how we are, where that goes by certificate."""
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, ssl=self.ssl),
            trust_env=bool(getproxies_environment()),
            read_bufsize=2**21,
        )

    @classmethod
    async def open(cls) -> Self:
        """A connection for wherever the operator runs."""
        return cls(await configuration())

    async def close(self) -> None:
        await self._session.close()

    def url(self, path: str) -> str:
        return f"{self._settings.host}{path}"

    async def credentials(self) -> dict[str, str]:
        """The header that says who we are; the token is read anew where it changes."""
        token = await self._settings.get_api_key_with_prefix("BearerToken", alias="authorization")
        return {"Authorization": token} if token else {}

    async def send(
        self, method: str, path: str, query: list[tuple[str, str]], headers: dict[str, str], body: bytes | None
    ) -> Answer:
        """One request. Raises what aiohttp raises, and TimeoutError after TIMEOUT_SECONDS."""
        async with self._session.request(
            method,
            self.url(path),
            params=query,
            data=body,
            headers={**headers, **await self.credentials()},
            proxy=self._settings.proxy,
            proxy_headers=self._settings.proxy_headers,
            server_hostname=self._settings.tls_server_name,
            allow_redirects=False,
        ) as response:
            return Answer(response.status, response.reason or "", await response.read())
