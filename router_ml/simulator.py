"""A loopback provider: an OpenAI-compatible server on 127.0.0.1 that answers for any model, for nothing.

Its answers say that they are simulated; its token counts are counts of what was really sent and answered. Faults come
on demand, from the constructor or from words in the model's name (``any-model!503``): a status code, ``reset``,
``stall``, ``html``, ``empty``, ``null`` (choices), ``cut`` (a stream that ends half way).
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

_MAX_BODY_BYTES = 64 * 1024 * 1024
_REPLY = "This is a simulated answer from {model}; no model was called. It stands where an answer would. "
_STALL_S = 3_600.0
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}


class Simulator:
    """Serves on a thread of its own between ``__enter__`` and ``__exit__``; ``base_url`` is where.

    ``requests`` keeps the JSON bodies that came in, ``billed_tokens`` the (input, output) tokens of what was answered.
    """

    def __init__(
        self,
        count_tokens: Callable[[str], int],
        *,
        output_tokens: int = 120,
        latency_s: float = 0.0,
        fault: str = "",
        port: int = 0,
    ) -> None:
        """``count_tokens`` of a text; ``output_tokens``: about how long answers are; ``port`` 0 takes a free one."""
        self._count, self._output_tokens, self._latency_s = count_tokens, output_tokens, latency_s
        self.fault = fault
        self.requests: list[dict[str, Any]] = []
        self.billed_tokens: list[tuple[int, int]] = []
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
            server = await asyncio.start_server(self._connected, "127.0.0.1", self._port)
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
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or we stop
        finally:
            self._open.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request on a kept connection; False when it is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        length = min(int(headers.get("content-length", 0)), _MAX_BODY_BYTES)
        raw = await reader.readexactly(length)
        if not head[0].startswith("POST /v1/chat/completions "):
            _send(writer, 404, _error("only POST /v1/chat/completions is simulated", 404))
            return True
        try:
            body = json.loads(raw)
            model, messages = str(body["model"]), body["messages"]
        except (ValueError, KeyError, TypeError):
            _send(writer, 400, _error("the body needs a model and messages", 400))
            return True
        self.requests.append(body)
        await asyncio.sleep(self._latency_s)
        fault = model.partition("!")[2] or self.fault
        if fault and fault != "cut":
            return await _misbehave(writer, fault)
        text = self._reply(model, body)
        usage = self._usage(messages, text)
        self.billed_tokens.append((usage["prompt_tokens"], usage["completion_tokens"]))
        if body.get("stream"):
            wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            await _stream(writer, model, text, usage if wants_usage else None, cut=fault == "cut")
            return False
        _send(writer, 200, _completion(model, text, usage))
        await writer.drain()
        return True

    def _reply(self, model: str, body: Mapping[str, Any]) -> str:
        sentence = _REPLY.format(model=model)
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or self._output_tokens
        wanted = min(int(limit), self._output_tokens)
        return (sentence * max(1, wanted // max(1, self._count(sentence)))).strip()

    def _usage(self, messages: Any, text: str) -> dict[str, int]:
        inputs = self._count(json.dumps(messages, ensure_ascii=False))
        outputs = self._count(text)
        return {"prompt_tokens": inputs, "completion_tokens": outputs, "total_tokens": inputs + outputs}


async def _misbehave(writer: asyncio.StreamWriter, fault: str) -> bool:
    if fault == "reset":
        writer.transport.abort()
        return False
    if fault == "stall":
        await asyncio.sleep(_STALL_S)
    elif fault == "html":
        _send(writer, 200, b"<html>gateway</html>", "text/html")
    elif fault == "empty":
        _send(writer, 200, b"")
    elif fault == "null":
        _send(writer, 200, _json({"id": "x", "object": "chat.completion", "choices": None}))
    elif fault.isdigit():
        _send(writer, int(fault), _error("a fault that was asked for", int(fault)))
    else:
        _send(writer, 400, _error("unknown fault", 400))
    return True


async def _stream(
    writer: asyncio.StreamWriter, model: str, text: str, usage: dict[str, int] | None, *, cut: bool
) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
    words = text.split(" ")
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": f"{word} "} for word in words)]
    for delta in deltas[: len(deltas) // 2] if cut else deltas:
        writer.write(_event(model, [{"index": 0, "delta": delta, "finish_reason": None}]))
        await writer.drain()
    if not cut:
        writer.write(_event(model, [{"index": 0, "delta": {}, "finish_reason": "stop"}]))
        if usage is not None:
            writer.write(_event(model, [], usage))
        writer.write(b"data: [DONE]\n\n")
    await writer.drain()


def _event(model: str, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
    chunk = {"id": "sim", "object": "chat.completion.chunk", "created": int(time.time()), "model": model}
    return b"data: " + _json({**chunk, "choices": choices, "usage": usage}) + b"\n\n"


def _completion(model: str, text: str, usage: dict[str, int]) -> bytes:
    message = {"role": "assistant", "content": text}
    return _json(
        {
            "id": f"sim-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": usage,
        }
    )


def _error(message: str, code: int) -> bytes:
    return _json({"error": {"message": f"simulated: {message}", "type": "simulated_error", "code": str(code)}})


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _send(writer: asyncio.StreamWriter, status: int, body: bytes, content_type: str = "application/json") -> None:
    head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Simulated')}\r\ncontent-type: {content_type}\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
