"""What a caller iterates: the SDK's own chunks of one offer, accounted for however the stream ends.

The relay is a generator, so that a stream that is closed, cancelled or simply dropped still ends up in the books.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any

from router_ml.errors import StreamInterrupted
from router_ml.exchange import Exchange
from router_ml.live import AsyncLive, Live
from router_ml.types import Routed

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionChunk as Chunk


class _Accounted:
    def __init__(self, exchange: Exchange, live: Live | AsyncLive) -> None:
        self._exchange, self._tally = exchange, live.tally

    @property
    def router(self) -> Routed:
        """What was decided and tried so far; usage and cost are known once the stream has ended."""
        return self._exchange.routed

    @property
    def request_id(self) -> str:
        """To give feedback with."""
        return self._exchange.request_id

    @property
    def text(self) -> str:
        """The content that has arrived."""
        return self._tally.text


class RoutedStream(_Accounted):
    """Chunks of a chat completion. Iterate it, or use it in a ``with`` block to be sure that it is closed.

    Iterating raises StreamInterrupted, with the text that arrived, where the provider breaks off.
    """

    def __init__(self, exchange: Exchange, live: Live, finish: Callable[[], None]) -> None:
        """``finish`` writes the exchange to the books, and is called once."""
        super().__init__(exchange, live)
        self._chunks = _relay(exchange, live, finish)
        next(self._chunks)  # a generator that never began would not see its end

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        chunk = next(self._chunks)
        assert chunk is not None
        return chunk

    def close(self) -> None:
        """Stop: the connection is closed, and what had arrived is billed."""
        self._chunks.close()

    def __enter__(self) -> RoutedStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncRoutedStream(_Accounted):
    """``RoutedStream`` for ``async for`` and ``async with``; cancelling the task that iterates closes it."""

    def __init__(self, exchange: Exchange, live: AsyncLive, finish: Callable[[], Coroutine[Any, Any, None]]) -> None:
        super().__init__(exchange, live)
        self._chunks = _relay_async(exchange, live, finish)

    async def begin(self) -> AsyncRoutedStream:
        await anext(self._chunks)
        return self

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        chunk = await anext(self._chunks)
        assert chunk is not None
        return chunk

    async def close(self) -> None:
        """Stop: the connection is closed, and what had arrived is billed."""
        await self._chunks.aclose()

    aclose = close

    async def __aenter__(self) -> AsyncRoutedStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


# Functions, not methods: a generator that held its stream would be a cycle, and a dropped stream would stay open.


def _relay(exchange: Exchange, live: Live, finish: Callable[[], None]) -> Generator[Chunk | None]:
    try:
        yield None
        yield from live
        exchange.streamed(live.tally)
    except StreamInterrupted as error:
        exchange.streamed(live.tally, error)
        raise
    except BaseException:  # closed, dropped or interrupted from outside
        exchange.left(live.tally)
        raise
    finally:
        try:
            live.close()
        finally:
            finish()


async def _relay_async(
    exchange: Exchange, live: AsyncLive, finish: Callable[[], Coroutine[Any, Any, None]]
) -> AsyncGenerator[Chunk | None]:
    try:
        yield None
        async with aclosing(live.chunks()) as chunks:
            async for chunk in chunks:
                yield chunk
        exchange.streamed(live.tally)
    except StreamInterrupted as error:
        exchange.streamed(live.tally, error)
        raise
    except BaseException:
        exchange.left(live.tally)
        raise
    finally:
        try:
            await live.close()
        finally:
            await finish()
