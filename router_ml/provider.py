"""One call to one OpenAI-compatible endpoint, through the openai SDK; sync and async.

A provider's profile shapes the request (``profile``), its reply is checked and its errors become ours (``reply``). No
exception that leaves this module carries the SDK's own: those hold the request, with the key in its headers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import openai
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from router_ml import wire
from router_ml.errors import ConfigError, InputError, ProviderError, RequestRejected
from router_ml.live import STREAM_ERRORS, AsyncLive, Live
from router_ml.profile import outgoing, streaming, without_refused
from router_ml.reply import Reply, read, translate
from router_ml.types import Offer, Provider

_log = logging.getLogger(__name__)
_SDK_ERRORS = (*STREAM_ERRORS, TypeError)  # TypeError: arguments that the SDK does not take
_NEEDS_A_PERSON = {401: "check its key", 402: "no balance is left", 403: "check what its key may do"}


class _Account:
    """A provider with its key: what the sync and the async endpoint share."""

    def __init__(self, provider: Provider, api_key: str | None) -> None:
        """``api_key`` None where the provider needs none. Raises ConfigError for a key no HTTP header can carry."""
        if api_key is not None and (not api_key.isascii() or not api_key.isprintable() or " " in api_key):
            raise ConfigError(f"{provider.key_env} holds blanks, line ends or other characters no API key has")
        self.provider = provider
        self._api_key = api_key
        self._said: set[str] = set()

    def _settings(self) -> dict[str, Any]:
        # The SDK asks for a key even where the endpoint does not. Retries and time-outs are ours.
        return {
            "api_key": self._api_key or "none",
            "base_url": self.provider.base_url,
            "max_retries": 0,
            "timeout": None,
        }

    def _request(self, offer: Offer, messages: Sequence[Any], params: Mapping[str, Any]) -> dict[str, Any]:
        request, dropped = outgoing(self.provider, offer, messages, params)
        self._say_once(dropped)
        return request

    def _second_try(self, request: Mapping[str, Any], failure: Exception) -> dict[str, Any] | None:
        """The request without what the provider has just refused by name, where its profile allows that."""
        if not isinstance(failure, RequestRejected) or failure.status == 413:
            return None
        kept, refused = without_refused(self.provider, request, failure.detail)
        self._say_once(refused)
        return kept if refused else None

    def _say_once(self, dropped: Sequence[str]) -> None:
        for name in dropped:
            if name not in self._said:
                self._said.add(name)
                _log.warning("%s does not support %s: left out of its requests", self.provider.name, name)

    def _ours(self, exc: Exception, offer: Offer) -> ProviderError | InputError:
        failure = translate(exc, str(offer), self._api_key)
        status = failure.status if isinstance(failure, ProviderError) else None
        if status in _NEEDS_A_PERSON:
            _log.warning("%s: %s", failure, _NEEDS_A_PERSON[status])
        return failure

    def _live(self, offer: Offer, end_s: float, idle_s: float, params: Mapping[str, Any]) -> dict[str, Any]:
        wanted = bool((params.get("stream_options") or {}).get("include_usage"))
        first_s = end_s - time.monotonic()
        return {
            "who": str(offer),
            "api_key": self._api_key,
            "first_s": first_s,
            "idle_s": idle_s,
            "usage_wanted": wanted,
        }


class Endpoint(_Account):
    """A provider, ready to be called; thread-safe, connections are kept."""

    def __init__(self, provider: Provider, api_key: str | None) -> None:
        super().__init__(provider, api_key)
        http = openai.DefaultHttpxClient(base_url=provider.base_url)
        self._client = openai.OpenAI(**self._settings(), http_client=wire.guard(http))

    def complete(self, offer: Offer, messages: Sequence[Any], params: Mapping[str, Any], timeout_s: float) -> Reply:
        """One attempt, cut ``timeout_s`` from now. ``params`` are keyword arguments of ``chat.completions.create``.

        Raises:
            RequestRejected: the provider refuses the request as such.
            ProviderUnavailable: no usable answer, for any other reason.
            InputError: ``params`` holds what the SDK does not take.
        """
        end_s = time.monotonic() + timeout_s
        return read(self._call(offer, self._request(offer, messages, params), end_s), str(offer))

    def open(
        self, offer: Offer, messages: Sequence[Any], params: Mapping[str, Any], timeout_s: float, idle_s: float
    ) -> Live:
        """A stream, read up to its first content: that is due in ``timeout_s``, each next one in ``idle_s``. Raises as
        ``complete``."""
        end_s = time.monotonic() + timeout_s
        stream = self._call(offer, streaming(self.provider, self._request(offer, messages, params)), end_s, idle_s)
        return Live(**self._live(offer, end_s, idle_s, params)).begin(stream)

    def close(self) -> None:
        self._client.close()

    def _call(
        self, offer: Offer, request: dict[str, Any], end_s: float, idle_s: float = 0.0, *, again: bool = True
    ) -> Any:
        failure: ProviderError | InputError
        try:
            with wire.deadline(end_s):
                return self._client.post(
                    **_posted(request, end_s, idle_s), stream_cls=openai.Stream[ChatCompletionChunk]
                )
        except _SDK_ERRORS as exc:
            failure = self._ours(exc, offer)
        kept = self._second_try(request, failure) if again else None
        if kept is not None:
            return self._call(offer, kept, end_s, idle_s, again=False)
        raise failure  # outside the except clause, so that it has no context


class AsyncEndpoint(_Account):
    """``Endpoint``, awaitable, for one event loop."""

    def __init__(self, provider: Provider, api_key: str | None) -> None:
        super().__init__(provider, api_key)
        http = openai.DefaultAsyncHttpxClient(base_url=provider.base_url)
        self._client = openai.AsyncOpenAI(**self._settings(), http_client=wire.guard_async(http))

    async def complete(
        self, offer: Offer, messages: Sequence[Any], params: Mapping[str, Any], timeout_s: float
    ) -> Reply:
        end_s = time.monotonic() + timeout_s
        return read(await self._call(offer, self._request(offer, messages, params), end_s), str(offer))

    async def open(
        self, offer: Offer, messages: Sequence[Any], params: Mapping[str, Any], timeout_s: float, idle_s: float
    ) -> AsyncLive:
        end_s = time.monotonic() + timeout_s
        stream = await self._call(
            offer, streaming(self.provider, self._request(offer, messages, params)), end_s, idle_s
        )
        return await AsyncLive(**self._live(offer, end_s, idle_s, params)).begin(stream)

    async def close(self) -> None:
        await self._client.close()

    async def _call(
        self, offer: Offer, request: dict[str, Any], end_s: float, idle_s: float = 0.0, *, again: bool = True
    ) -> Any:
        failure: ProviderError | InputError
        try:
            async with asyncio.timeout(end_s - time.monotonic()):
                return await self._client.post(
                    **_posted(request, end_s, idle_s), stream_cls=openai.AsyncStream[ChatCompletionChunk]
                )
        except _SDK_ERRORS as exc:  # TimeoutError is an OSError
            failure = self._ours(exc, offer)
        kept = self._second_try(request, failure) if again else None
        if kept is not None:
            return await self._call(offer, kept, end_s, idle_s, again=False)
        raise failure


def _posted(request: Mapping[str, Any], end_s: float, idle_s: float) -> dict[str, Any]:
    """Arguments of the SDK's own ``client.post``. What ``chat.completions.create`` does before it, rebuilding every
    message by its type, takes longer than all of our work, and ours are plain JSON already."""
    body = dict(request)
    options = {
        "headers": body.pop("extra_headers", None) or {},
        "params": body.pop("extra_query", None) or {},
        "timeout": max(1e-3, end_s - time.monotonic(), idle_s),  # of each read; the rest of a stream has idle_s
        "security": {"bearer_auth": True},  # never an admin key of the environment
    }
    stream = bool(body.get("stream"))
    return {"path": "/chat/completions", "cast_to": ChatCompletion, "body": body, "options": options, "stream": stream}
