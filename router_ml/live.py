"""One stream of one provider, from before its first content to its end; sync and async.

``openai.Stream`` in, the same chunks out. Its time-outs are per read and it takes a clean close for an end, so here
silence is measured between contents (keep-alives are none) and an end needs its finish_reason.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING

import httpx2
import openai

from router_ml import wire
from router_ml.errors import InputError, ProviderError, StreamInterrupted
from router_ml.reply import Tally, translate

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionChunk as Chunk

TRAILER_S = 2.0  # for the usage after the last finish_reason: the answer is complete without it
# ValueError: an event that is not JSON, bytes that are not UTF-8. The others come bare from the SDK's reading.
STREAM_ERRORS = (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError, ValueError, OSError)


class _State:
    """What both kinds share: what has arrived, until when the next content is due, and what an error means."""

    def __init__(self, who: str, api_key: str | None, first_s: float, idle_s: float, *, usage_wanted: bool) -> None:
        self.tally = Tally(who)
        self.head: list[Chunk] = []
        self._who, self._api_key, self._idle_s, self._usage_wanted = who, api_key, idle_s, usage_wanted
        self.due_s = time.monotonic() + first_s

    def take(self, chunk: Chunk) -> bool:
        """Note it; False where it is the usage that only we asked for. Raises ProviderUnavailable for an error."""
        if self.tally.add(chunk):
            self.due_s = time.monotonic() + self._idle_s
        elif self.tally.complete:
            self.due_s = min(self.due_s, time.monotonic() + TRAILER_S)
        return bool(chunk.choices) or chunk.usage is None or self._usage_wanted

    def failure(self, error: Exception) -> ProviderError | InputError:
        return error if isinstance(error, ProviderError) else translate(error, self._who, self._api_key)

    def interruption(self, error: Exception | None) -> StreamInterrupted | None:
        """What a failure after the first content is; None where the answer was complete before it."""
        if self.tally.complete:
            return None
        why = self.failure(error) if error is not None else self.tally.unfinished()
        return StreamInterrupted(f"{why} after {len(self.tally.text)} characters", text=self.tally.text)


class Live(_State):
    """A stream whose first content has arrived, after ``begin``; iterate once, then ``close``."""

    def begin(self, stream: openai.Stream[Chunk]) -> Live:
        """Read up to the first content. Raises ProviderError, with the stream closed, where none comes in time."""
        self._stream = stream
        error: Exception | None = None
        try:
            while not self.tally.begun:
                chunk = self._pull()
                if chunk is None:
                    error = self.tally.unfinished()
                    break
                if self.take(chunk):
                    self.head.append(chunk)
        except (ProviderError, *STREAM_ERRORS) as exc:
            error = exc
        if error is not None:
            self.close()
            raise self.failure(error)
        return self

    def __iter__(self) -> Iterator[Chunk]:
        """Raises StreamInterrupted where it breaks off."""
        yield from self.head
        error: Exception | None = None
        try:
            while (chunk := self._pull()) is not None:
                if self.take(chunk):
                    yield chunk
        except (ProviderError, *STREAM_ERRORS) as exc:
            error = exc
        interruption = self.interruption(error)
        if interruption is not None:
            raise interruption

    def close(self) -> None:
        """Close the connection: the provider notices and stops."""
        self._stream.close()

    def _pull(self) -> Chunk | None:
        with wire.deadline(self.due_s):
            return next(self._stream, None)


class AsyncLive(_State):
    """``Live``, awaitable."""

    async def begin(self, stream: openai.AsyncStream[Chunk]) -> AsyncLive:
        self._stream = stream
        error: Exception | None = None
        try:
            while not self.tally.begun:
                chunk = await self._pull()
                if chunk is None:
                    error = self.tally.unfinished()
                    break
                if self.take(chunk):
                    self.head.append(chunk)
        except (ProviderError, *STREAM_ERRORS) as exc:
            error = exc
        except BaseException:  # cancelled
            await self.close()
            raise
        if error is not None:
            await self.close()
            raise self.failure(error)
        return self

    async def chunks(self) -> AsyncGenerator[Chunk]:
        """Raises StreamInterrupted where it breaks off."""
        for chunk in self.head:
            yield chunk
        error: Exception | None = None
        try:
            while (pulled := await self._pull()) is not None:
                if self.take(pulled):
                    yield pulled
        except (ProviderError, *STREAM_ERRORS) as exc:
            error = exc
        interruption = self.interruption(error)
        if interruption is not None:
            raise interruption

    async def close(self) -> None:
        await self._stream.close()

    async def _pull(self) -> Chunk | None:
        async with asyncio.timeout(max(0.0, self.due_s - time.monotonic())):
            return await anext(self._stream, None)
