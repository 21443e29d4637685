"""Everything a bad upstream does, on demand: ``kind``, ``kind:argument``, and ``%percent`` of the requests.

| kind | what goes over the wire |
|---|---|
| ``500`` (any status), ``429:30`` | that status with an error body, and Retry-After where an argument says so |
| ``reset`` ``reset-head`` ``reset-body`` | the connection is reset before, in the middle of the head, of the body |
| ``reset-billed`` | the same before the first byte, but after the work was done |
| ``stall`` ``stall-head`` ``stall-body`` | silence from there on |
| ``slow:0.03`` | the right answer, head and all, a byte at a time, so many seconds apart |
| ``keepalive`` | a 200, then blank lines (in a stream: SSE comments) for ever |
| ``html`` ``empty`` ``truncated`` ``garbage`` ``list`` ``null`` ``error`` | a 200 with such a body |
| ``absurd:-1`` | a right answer with that many completion tokens in its usage |
| ``bomb`` ``huge`` | a 200 of 1 GB of blanks, gzipped or not |
| ``unsupported:name`` | a 422 that names the parameter, for as long as it is sent |

In a stream, ``cut:k`` ``stall:k`` ``keepalive:k`` ``blank:k`` ``error:k`` ``garbage:k`` ``unfinished:k`` happen after k
tokens: a reset, silence, comments or empty deltas for ever, an error event, an event that is not JSON, a clean end
without a finish_reason.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

KEEPALIVE_S = 0.05
_GIGABYTE = 1 << 30
_PIECE = b" " * (1 << 20)
_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
_BODIES = {
    "html": b"<html><body>gateway</body></html>",
    "empty": b"",
    "truncated": b'{"id": "x", "object": "chat.completion", "choices": [{"index": 0, "mess',
    "garbage": b"\x00\xff{not json",
    "list": b'[{"error": {"code": 400}}]',
    "null": b'{"id": "x", "object": "chat.completion", "choices": null}',
    "error": b'{"error": {"message": "simulated", "code": 502}}',
}
_KINDS = {"reset", "reset-head", "reset-body", "reset-billed", "stall", "stall-head", "stall-body", "slow", "keepalive"}
_KINDS |= {"absurd", "bomb", "huge", "unsupported", "cut", "blank", "unfinished", *_BODIES}
IN_STREAM = {"cut", "stall", "keepalive", "blank", "error", "garbage", "unfinished"}
BILLED = {"reset-billed", "reset-body", "stall-body", "slow"}


class Client(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass(frozen=True, slots=True)
class Fault:
    kind: str
    argument: str = ""
    percent: float = 100.0

    @classmethod
    def parse(cls, text: str) -> Fault | None:
        """None for "". Raises ValueError for what is no fault."""
        if not text:
            return None
        spec, _, percent = text.partition("%")
        kind, _, argument = spec.partition(":")
        if kind not in _KINDS and not (kind.isdigit() and 100 <= int(kind) <= 599):
            raise ValueError(f"unknown fault {kind!r}")
        return cls(kind, argument, float(percent) if percent else 100.0)

    def strikes(self, number: int) -> bool:
        """Whether request ``number`` (from 0) is hit: evenly spread, as close to ``percent`` of all as can be."""
        return int((number + 1) * self.percent / 100.0) > int(number * self.percent / 100.0)


async def misbehave(client: Client, fault: Fault, answer: bytes, body: Mapping[str, Any]) -> bool | None:
    """Do it in place of the whole response ``answer`` (head and body); True where the connection is kept, False where
    not, None where the request ``body`` does not deserve it."""
    kind, writer = fault.kind, client.writer
    if kind == "unsupported" and fault.argument not in body:
        return None
    whole = _whole(fault)
    if whole is not None:
        writer.write(whole)
        return True
    if kind in ("bomb", "huge"):
        await _flood(writer, packed=kind == "bomb")
    elif kind == "keepalive":
        await keepalive(writer, b"\r\n", sse=bool(body.get("stream")))
    elif kind == "slow":
        for byte in answer:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(float(fault.argument or 0.03))
        return True
    else:
        await _break_off(client, kind, answer)
    return False


def _whole(fault: Fault) -> bytes | None:
    """The response of a fault that is one."""
    kind = fault.kind
    if kind == "unsupported":
        message = f"Extra inputs are not permitted: '{fault.argument}'"
        return http(422, json.dumps({"error": {"message": message}}).encode())
    if kind.isdigit():
        extra = f"retry-after: {fault.argument}\r\n" if fault.argument else ""
        return http(int(kind), error_body("a fault that was asked for", int(kind)), extra=extra)
    if kind in _BODIES:
        return http(200, _BODIES[kind], "text/html" if kind == "html" else "application/json")
    return None


async def _break_off(client: Client, kind: str, answer: bytes) -> None:
    """Reset the connection or fall silent, before the answer, in its head or in its body."""
    head, writer = answer.index(b"\r\n\r\n") + 4, client.writer
    sent = {"head": head // 2, "body": (head + len(answer)) // 2}.get(kind.partition("-")[2], 0)
    writer.write(answer[:sent])
    await writer.drain()
    if kind.startswith("stall"):
        await client.reader.read(1)  # until it leaves
    if sent:
        await asyncio.sleep(0.02)  # what was written must arrive before the reset discards it
    writer.transport.abort()


async def break_stream(client: Client, fault: Fault, blank: bytes) -> None:
    """What follows a stream's k-th token; ``blank`` is an event with an empty delta."""
    writer = client.writer
    if fault.kind == "cut":
        await asyncio.sleep(0.02)
        writer.transport.abort()
    elif fault.kind == "error":
        writer.write(chunk(b'data: {"error": {"message": "simulated", "code": 502}}\n\n'))
    elif fault.kind == "garbage":
        writer.write(chunk(b"data: {not json\n\n"))
    elif fault.kind == "stall":
        await client.reader.read(1)  # until it leaves
    elif fault.kind in ("keepalive", "blank"):
        await keepalive(writer, blank if fault.kind == "blank" else b": keep-alive\n\n", sse=True, head=False)
    if fault.kind != "cut":
        writer.write(chunk(b""))


async def keepalive(writer: asyncio.StreamWriter, line: bytes, *, sse: bool, head: bool = True) -> None:
    """Until the client leaves."""
    if head:
        writer.write(chunked_head("text/event-stream" if sse else "application/json"))
        line = b": keep-alive\n\n" if sse else line
    while True:
        writer.write(chunk(line))
        await writer.drain()
        await asyncio.sleep(KEEPALIVE_S)


async def _flood(writer: asyncio.StreamWriter, *, packed: bool) -> None:
    encoding = "content-encoding: gzip\r\n" if packed else ""
    writer.write(chunked_head("application/json", encoding))
    for piece in _packed_blanks() if packed else (_PIECE for _ in range(_GIGABYTE // len(_PIECE))):
        writer.write(chunk(piece))
        await writer.drain()
    writer.write(chunk(b""))


@cache
def _packed_blanks() -> tuple[bytes, ...]:
    """A gzip stream of a gigabyte of blanks, less its end: after a full flush each piece packs to the same block."""
    packer = zlib.compressobj(wbits=31)
    first, again = (packer.compress(_PIECE * 16) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return (first, *[again] * (_GIGABYTE // (len(_PIECE) * 16) - 1))


def http(status: int, body: bytes, content_type: str = "application/json", extra: str = "") -> bytes:
    """A whole response."""
    head = f"HTTP/1.1 {status} {_REASONS.get(status, 'Simulated')}\r\ncontent-type: {content_type}\r\n{extra}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def chunked_head(content_type: str, extra: str = "") -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\n{extra}transfer-encoding: chunked\r\n\r\n".encode()


def chunk(data: bytes) -> bytes:
    """Of a chunked body; the empty one ends it."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def error_body(message: str, code: int) -> bytes:
    error = {"message": f"simulated: {message}", "type": "simulated_error", "code": str(code)}
    return json.dumps({"error": error}).encode()
