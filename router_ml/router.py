"""Router and AsyncRouter: call, wait and log what ``intake`` has decided. The only module that knows the others."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TypeVar

from router_ml.client import AsyncClient, Client
from router_ml.errors import InputError, ProviderError, RequestRejected, SpendCeilingReached
from router_ml.exchange import Exchange
from router_ml.failover import Step
from router_ml.intake import Intake
from router_ml.live import AsyncLive, Live
from router_ml.provider import AsyncEndpoint, Endpoint
from router_ml.reply import Reply
from router_ml.stream import AsyncRoutedStream, RoutedStream
from router_ml.text import Prompt
from router_ml.types import Completion, Outcome, Tier

Opened = TypeVar("Opened", Reply, Live, AsyncLive)


class Router(Intake[Endpoint]):
    """Sends each prompt to the cheapest tier that is worth it, and keeps the books. Thread-safe.

    >>> router = Router()
    >>> reply = router.complete("Explain vector databases in 3 sentences.")
    """

    _endpoint_type = Endpoint

    @property
    def openai(self) -> Client:
        """A drop-in for ``openai.OpenAI()``: ``router.openai.chat.completions.create(model="auto", messages=...)``."""
        return Client(self)

    def complete(
        self,
        prompt: Prompt,
        tier: Tier | str | None = None,
        *,
        model: str | None = None,
        quality: float | None = None,
        session: str | None = None,
        **openai_kwargs: Any,
    ) -> Completion:
        """Answer a prompt or a conversation. ``tier`` or ``model`` pins one; ``session`` names a conversation that
        keeps its tier; ``timeout`` is the whole request's deadline in seconds; the rest goes to
        ``chat.completions.create``.

        Raises:
            InputError: an empty prompt, no user turn, an unknown tier or model, an argument the API does not have, or
                a request that no offer can serve.
            ConfigError: ``quality`` outside (0, 1].
            RequestRejected: the provider refuses the request as such (400, 413, 422).
            RequestFailed: no offer answered within the deadline; carries every attempt.
            SpendCeilingReached: ``max_usd_per_day`` leaves no room for it; nothing was sent.
        """
        exchange = self._exchange(prompt, tier, model, quality, session, openai_kwargs)
        try:
            self._start(exchange)
            return exchange.answered(self._first_to(exchange, self._whole))
        finally:
            self._finish(exchange)

    def stream(
        self,
        prompt: Prompt,
        tier: Tier | str | None = None,
        *,
        model: str | None = None,
        quality: float | None = None,
        session: str | None = None,
        **openai_kwargs: Any,
    ) -> RoutedStream:
        """As ``complete``, chunk by chunk. Returns when the first content has arrived; up to there another offer may
        take over, after it a failure is StreamInterrupted. The deadline is that of the first content."""
        exchange = self._exchange(prompt, tier, model, quality, session, openai_kwargs)
        try:
            self._start(exchange)
            live = self._first_to(exchange, self._opened)
            exchange.first_content()
        except BaseException:
            self._finish(exchange)
            raise
        return RoutedStream(exchange, live, functools.partial(self._finish, exchange))

    def feedback(self, request_id: str, score: float, *, source: str = "user") -> None:
        """Note how good an answer was, 0..1. The same source's later word replaces its earlier one.

        Raises:
            InputError: score outside 0..1.
            LedgerError: the ledger does not know the request.
        """
        self.ledger.add_outcome(Outcome(request_id, score, source, datetime.now(UTC)))

    def close(self) -> None:
        """Let go of connections and write what the ledger still holds."""
        for endpoint in self._endpoints.values():
            endpoint.close()
        self.ledger.close()

    def __enter__(self) -> Router:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _first_to(self, exchange: Exchange, call: Callable[[Exchange, Step], Opened]) -> Opened:
        """Drive the failover until an offer answers."""
        step = exchange.first()
        while step is not None:
            if step.delay_s > 0:  # sleep(0) would give the interpreter away
                time.sleep(step.delay_s)
            try:
                return call(exchange, step)
            except ProviderError as error:
                step = exchange.failed(error)
                if isinstance(error, RequestRejected):
                    raise
            except InputError:
                exchange.refused()
                raise
        raise exchange.outcome()

    def _whole(self, exchange: Exchange, step: Step) -> Reply:
        offer, query = exchange.calling(step), exchange.query
        return self._endpoint(offer.provider).complete(offer, query.messages, query.params, step.timeout_s)

    def _opened(self, exchange: Exchange, step: Step) -> Live:
        offer, query = exchange.calling(step), exchange.query
        idle_s = self.settings.stream_idle_s
        return self._endpoint(offer.provider).open(offer, query.messages, query.params, step.timeout_s, idle_s)

    def _start(self, exchange: Exchange) -> None:
        for start in exchange.starts():
            try:
                self.ledger.start(**start)
            except SpendCeilingReached as refusal:
                if exchange.over_ceiling(refusal):
                    raise
            else:
                return

    def _finish(self, exchange: Exchange) -> None:
        self._end(exchange)
        if exchange.in_books:
            self.ledger.finish(exchange.request_id, exchange.status, exchange.attempts, datetime.now(UTC))


class AsyncRouter(Intake[AsyncEndpoint]):
    """``Router`` for one event loop: the same methods, awaitable. A cancelled call is logged and frees what it held."""

    _endpoint_type = AsyncEndpoint

    @property
    def openai(self) -> AsyncClient:
        """A drop-in for ``openai.AsyncOpenAI()``."""
        return AsyncClient(self)

    async def complete(
        self,
        prompt: Prompt,
        tier: Tier | str | None = None,
        *,
        model: str | None = None,
        quality: float | None = None,
        session: str | None = None,
        **openai_kwargs: Any,
    ) -> Completion:
        """As ``Router.complete``."""
        exchange = self._exchange(prompt, tier, model, quality, session, openai_kwargs)
        try:
            await self._start(exchange)
            return exchange.answered(await self._first_to(exchange, self._whole))
        finally:
            await self._finish(exchange)

    async def stream(
        self,
        prompt: Prompt,
        tier: Tier | str | None = None,
        *,
        model: str | None = None,
        quality: float | None = None,
        session: str | None = None,
        **openai_kwargs: Any,
    ) -> AsyncRoutedStream:
        """As ``Router.stream``."""
        exchange = self._exchange(prompt, tier, model, quality, session, openai_kwargs)
        try:
            await self._start(exchange)
            live = await self._first_to(exchange, self._opened)
            exchange.first_content()
        except BaseException:
            await self._finish(exchange)
            raise
        return await AsyncRoutedStream(exchange, live, functools.partial(self._finish, exchange)).begin()

    async def feedback(self, request_id: str, score: float, *, source: str = "user") -> None:
        """As ``Router.feedback``."""
        await asyncio.to_thread(self.ledger.add_outcome, Outcome(request_id, score, source, datetime.now(UTC)))

    async def close(self) -> None:
        """Let go of connections and write what the ledger still holds."""
        for endpoint in self._endpoints.values():
            await endpoint.close()
        await asyncio.to_thread(self.ledger.close)

    async def __aenter__(self) -> AsyncRouter:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _first_to(self, exchange: Exchange, call: Callable[[Exchange, Step], Awaitable[Opened]]) -> Opened:
        step = exchange.first()
        while step is not None:
            if step.delay_s > 0:
                await asyncio.sleep(step.delay_s)
            try:
                return await call(exchange, step)
            except ProviderError as error:
                step = exchange.failed(error)
                if isinstance(error, RequestRejected):
                    raise
            except InputError:
                exchange.refused()
                raise
        raise exchange.outcome()

    async def _whole(self, exchange: Exchange, step: Step) -> Reply:
        offer, query = exchange.calling(step), exchange.query
        return await self._endpoint(offer.provider).complete(offer, query.messages, query.params, step.timeout_s)

    async def _opened(self, exchange: Exchange, step: Step) -> AsyncLive:
        offer, query = exchange.calling(step), exchange.query
        idle_s = self.settings.stream_idle_s
        return await self._endpoint(offer.provider).open(offer, query.messages, query.params, step.timeout_s, idle_s)

    async def _start(self, exchange: Exchange) -> None:
        for start in exchange.starts():
            try:
                await self.ledger.start_async(**start)
            except SpendCeilingReached as refusal:
                if exchange.over_ceiling(refusal):
                    raise
            else:
                return

    async def _finish(self, exchange: Exchange) -> None:
        self._end(exchange)
        if exchange.in_books:  # written even if we are cancelled again
            at = datetime.now(UTC)
            await self.ledger.finish_async(exchange.request_id, exchange.status, exchange.attempts, at)


@functools.cache
def _default_router() -> Router:
    return Router()


def classify_and_complete(prompt: Prompt, **kwargs: Any) -> Completion:
    """``Router().complete(prompt, ...)`` on one router kept for the process."""
    return _default_router().complete(prompt, **kwargs)
