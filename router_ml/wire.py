"""What httpx leaves open: a total deadline for a sync call, and a bound on what a body may unpack to.

Its time-outs are per read, so that a provider that drips bytes is never late. Here every read, write and connect of a
sync call is given only what is left until the deadline. (Async calls are cut by ``asyncio.timeout``.)
"""

from __future__ import annotations

import select
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import httpcore2
import httpx2

if TYPE_CHECKING:
    import ssl

MAX_BODY_BYTES = 32 * 1024 * 1024
_end: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def deadline(end_s: float) -> Iterator[None]:
    """Cut what this thread reads and writes at ``end_s`` on ``time.monotonic``."""
    token = _end.set(end_s)
    try:
        yield
    finally:
        _end.reset(token)


def guard(client: httpx2.Client) -> httpx2.Client:
    """``client`` with deadlines and bounded bodies; the proxies it took from the environment are kept."""
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx2.HTTPTransport):
            # httpcore's public argument of this name cannot be passed through httpx.
            transport._pool._network_backend = _Backend(transport._pool._network_backend)
    client.event_hooks = {"response": [_bound]}
    return client


def guard_async(client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """``client`` with bounded bodies, and with a pool that scans its idle connections quickly."""
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx2.AsyncHTTPTransport):
            transport._pool._network_backend = _AsyncBackend(transport._pool._network_backend)
    client.event_hooks = {"response": [_bound_async]}
    return client


def _bound(response: httpx2.Response) -> None:
    whole = response.iter_bytes

    def iter_bytes(chunk_size: int | None = None) -> Iterator[bytes]:
        count = _counter()
        for chunk in whole(chunk_size):
            count(chunk)
            yield chunk

    # On the instance: after httpx's own decoders, which unpack a piece at a time.
    response.iter_bytes = iter_bytes  # type: ignore[method-assign]


async def _bound_async(response: httpx2.Response) -> None:
    whole = response.aiter_bytes

    async def aiter_bytes(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        count = _counter()
        async for chunk in whole(chunk_size):
            count(chunk)
            yield chunk

    response.aiter_bytes = aiter_bytes  # type: ignore[method-assign, assignment]


def _counter() -> Callable[[bytes], None]:
    total = 0

    def count(chunk: bytes) -> None:
        nonlocal total
        total += len(chunk)
        if total > MAX_BODY_BYTES:
            raise httpx2.DecodingError(f"a body of more than {MAX_BODY_BYTES} bytes")

    return count


def _left(timeout: float | None, late: type[Exception]) -> float | None:
    end = _end.get()
    if end is None:
        return timeout
    left = end - time.monotonic()
    if left <= 0:
        raise late("the deadline has passed")
    return left if timeout is None else min(timeout, left)


class _Backend(httpcore2.NetworkBackend):
    def __init__(self, inner: httpcore2.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        left = _left(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._inner.connect_tcp(host, port, left, local_address, socket_options))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, inner: httpcore2.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout, httpcore2.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = _left(timeout, httpcore2.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _AsyncBackend(httpcore2.AsyncNetworkBackend):
    def __init__(self, inner: httpcore2.AsyncNetworkBackend) -> None:
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        return _AsyncStream(await self._inner.connect_tcp(host, port, timeout, local_address, socket_options))

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class _AsyncStream(httpcore2.AsyncNetworkStream):
    """Asks the socket itself whether it is readable: at each request the pool asks that of every idle connection, and
    through anyio's attributes the answer takes a fifth of all the time at 50 concurrent requests."""

    def __init__(self, inner: httpcore2.AsyncNetworkStream) -> None:
        self._inner = inner
        socket = inner.get_extra_info("socket")
        self._poll = None
        if socket is not None and hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(socket, select.POLLIN)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._inner.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        return _AsyncStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable" and self._poll is not None:
            return bool(self._poll.poll(0))
        return self._inner.get_extra_info(info)
