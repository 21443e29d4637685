"""A loopback provider: an OpenAI-compatible server on 127.0.0.1 that answers for any model, for nothing.

Its answers say that they are simulated; its token counts are counts of what was really sent and answered. Faults come
on demand (``faults`` lists them), from the constructor or from words in the model's name (``any-model!503``).
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

from router_ml.faults import (
    BILLED,
    IN_STREAM,
    Client,
    Fault,
    break_stream,
    chunk,
    chunked_head,
    error_body,
    http,
    misbehave,
)
from router_ml.simulated import Answer, answer

_MAX_BODY_BYTES = 64 * 1024 * 1024


class Simulator:
    """Serves on a thread of its own between ``__enter__`` and ``__exit__``; ``base_url`` is where.

    ``requests`` keeps the JSON bodies that came in, ``billed_tokens`` the (input, output) tokens of what was answered,
    ``abandoned_at_s`` the times (``time.monotonic``) at which a client left in the middle of a stream.
    """

    def __init__(
        self,
        count_tokens: Callable[[str], int],
        *,
        output_tokens: int = 120,
        latency_s: float = 0.0,
        token_s: float = 0.0,
        fault: str = "",
        port: int = 0,
        keep_requests: bool = True,
    ) -> None:
        """``count_tokens`` of a text; ``output_tokens``: about how long answers are; ``token_s`` between a stream's
        tokens; ``port`` 0 takes a free one. Raises ValueError for an unknown ``fault``."""
        Fault.parse(fault)
        self._count, self._output_tokens = count_tokens, output_tokens
        self._latency_s, self._token_s, self._keep_requests = latency_s, token_s, keep_requests
        self.fault = fault
        self.requests: list[dict[str, Any]] = []
        self.billed_tokens: list[tuple[int, int]] = []
        self.abandoned_at_s: list[float] = []
        self._seen: Counter[str] = Counter()
        self._port = port
        self._ready = threading.Event()
        self._failure: OSError | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> Simulator:
        """Raises OSError where the port cannot be had."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        try:
            server = await asyncio.start_server(self._connected, "127.0.0.1", self._port, backlog=1_024)
        except OSError as exc:
            self._failure = exc
            self._ready.set()
            return
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while await self._exchange(reader, writer):
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or we stop
        finally:
            self._open.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request on a kept connection; False when it is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        raw = await reader.readexactly(min(int(headers.get("content-length", 0)), _MAX_BODY_BYTES))
        if not head[0].startswith("POST /v1/chat/completions "):
            writer.write(http(404, error_body("only POST /v1/chat/completions is simulated", 404)))
            return True
        try:
            body = json.loads(raw)
            model, _, asked = str(body["model"]).partition("!")
            reply = answer({**body, "model": model}, self._count, self._output_tokens)
            fault = Fault.parse(asked or self.fault)
        except (ValueError, KeyError, TypeError, IndexError) as exc:
            writer.write(http(400, error_body(f"the body needs a model and messages: {exc}", 400)))
            return True
        if self._keep_requests:
            self.requests.append(body)
        self._seen[body["model"]] += 1
        if fault is not None and not fault.strikes(self._seen[body["model"]] - 1):
            fault = None
        await asyncio.sleep(self._latency_s)
        return await self._respond(Client(reader, writer), reply, fault, body)

    async def _respond(self, client: Client, reply: Answer, fault: Fault | None, body: dict[str, Any]) -> bool:
        streamed, writer = bool(body.get("stream")), client.writer
        in_stream = fault is not None and streamed and fault.kind in IN_STREAM and bool(fault.argument)
        if fault is not None and not in_stream and fault.kind not in ("absurd", "cut", "unfinished", "blank"):
            if fault.kind in BILLED:
                self._bill(reply.input_tokens, reply.output_tokens)
            kept = await misbehave(client, fault, http(200, reply.completion()), body)
            if kept is not None:
                return kept
            fault = None
        if streamed:
            return await self._stream(client, reply, fault, body)
        whole = reply.completion()
        if fault is not None and fault.kind == "absurd":
            whole = json.dumps(json.loads(whole) | {"usage": _absurd(reply, fault)}).encode()
        self._bill(reply.input_tokens, reply.output_tokens)
        writer.write(http(200, whole))
        return True

    async def _stream(self, client: Client, reply: Answer, fault: Fault | None, body: dict[str, Any]) -> bool:
        limit = int(fault.argument) if fault is not None and fault.argument.isdigit() else None
        sent, writer = list[str](), client.writer
        writer.write(chunked_head("text/event-stream"))
        writer.write(chunk(reply.events({"role": "assistant", "content": ""})))
        try:
            for delta, text in reply.deltas():
                if limit is not None and len(sent) >= limit:
                    break
                writer.write(chunk(reply.events(delta)))
                sent.append(text)
                await writer.drain()
                await asyncio.sleep(self._token_s)
            if fault is not None:
                await break_stream(client, fault, reply.events({}))
                return False
            writer.write(chunk(reply.events({}, reply.finish_reason)))
            if (body.get("stream_options") or {}).get("include_usage"):
                writer.write(chunk(reply.usage_event()))
            writer.write(chunk(b"data: [DONE]\n\n") + chunk(b""))
        except ConnectionError:
            self.abandoned_at_s.append(time.monotonic())
            raise
        finally:
            self._bill(reply.input_tokens, self._count("".join(sent)))
        return True

    def _bill(self, input_tokens: int, output_tokens: int) -> None:
        if self._keep_requests:
            self.billed_tokens.append((input_tokens, output_tokens))


def _absurd(reply: Answer, fault: Fault) -> dict[str, Any]:
    count = json.loads(fault.argument or "-1")
    return {"prompt_tokens": reply.input_tokens, "completion_tokens": count, "total_tokens": 0}
