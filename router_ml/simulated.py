"""Pure: the answer a loopback provider gives, as one body or as a stream's events. It says that it is simulated."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_SENTENCE = "This is a simulated answer from {model}; no model was called. It stands where an answer would. "
_EXAMPLES = {"string": "simulated", "integer": 0, "number": 0.0, "boolean": False, "array": [], "null": None}


@dataclass(frozen=True, slots=True)
class Answer:
    """``body`` is the request; ``text`` what each choice says, "" where it calls ``tool_calls`` instead."""

    body: Mapping[str, Any]
    text: str
    tool_calls: tuple[dict[str, Any], ...]
    finish_reason: str
    input_tokens: int
    output_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        total = self.input_tokens + self.output_tokens
        return {"prompt_tokens": self.input_tokens, "completion_tokens": self.output_tokens, "total_tokens": total}

    def completion(self) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.tool_calls:
            message["tool_calls"] = list(self.tool_calls)
        choice = {"message": message, "finish_reason": self.finish_reason, "logprobs": self._logprobs()}
        choices = [{"index": number, **choice} for number in range(self._choices)]
        return _json({**self._envelope("chat.completion"), "choices": choices, "usage": self.usage})

    def deltas(self) -> Iterator[tuple[dict[str, Any], str]]:
        """Each content delta of a stream, with the text that is billed for it."""
        for call in self.tool_calls:
            number, function = self.tool_calls.index(call), call["function"]
            head = {**call, "index": number, "function": {**function, "arguments": ""}}
            yield {"tool_calls": [head]}, function["name"]
            rest = {"index": number, "function": {"arguments": function["arguments"]}}
            yield {"tool_calls": [rest]}, function["arguments"]
        for number, word in enumerate(self.text.split(" ") if self.text else ()):
            piece = f" {word}" if number else word
            yield {"content": piece}, piece

    def events(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """One event for each choice."""
        choices = [{"index": i, "delta": delta, "finish_reason": finish_reason} for i in range(self._choices)]
        envelope = self._envelope("chat.completion.chunk")
        return b"".join(_event({**envelope, "choices": [choice]}) for choice in choices)

    def usage_event(self) -> bytes:
        return _event({**self._envelope("chat.completion.chunk"), "choices": [], "usage": self.usage})

    @property
    def _choices(self) -> int:
        return int(self.body.get("n") or 1)

    def _envelope(self, kind: str) -> dict[str, Any]:
        fingerprint = f"seed-{self.body['seed']}" if "seed" in self.body else None
        head = {"id": f"sim-{uuid.uuid4().hex}", "object": kind, "created": int(time.time())}
        return {**head, "model": self.body["model"], "system_fingerprint": fingerprint}

    def _logprobs(self) -> dict[str, Any] | None:
        if not self.body.get("logprobs"):
            return None
        return {"content": [{"token": w, "logprob": -0.1, "top_logprobs": []} for w in self.text.split(" ")]}


def answer(body: Mapping[str, Any], count: Callable[[str], int], output_tokens: int) -> Answer:
    """What ``body``, a request to chat completions, is answered with: tool calls, JSON of the wanted shape, or text of
    about ``output_tokens``."""
    inputs = count(json.dumps(body["messages"], ensure_ascii=False))
    calls = _tool_calls(body)
    if calls:
        billed = sum(count(call["function"]["name"] + call["function"]["arguments"]) for call in calls)
        return Answer(body, "", calls, "tool_calls", inputs, billed)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    response_format = body.get("response_format") or {}
    if response_format.get("type") in ("json_object", "json_schema"):
        text, finish = json.dumps(_example((response_format.get("json_schema") or {}).get("schema") or {})), "stop"
    else:
        sentence = _SENTENCE.format(model=body["model"])
        wanted = min(int(limit), output_tokens) if limit else output_tokens
        text = (sentence * max(1, wanted // max(1, count(sentence)))).strip()
        finish = "length" if limit and int(limit) < output_tokens else "stop"
    for stop in [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or ():
        text = text.partition(stop)[0]
    return Answer(body, text, (), finish, inputs, count(text) * int(body.get("n") or 1))


def _tool_calls(body: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    tools, choice = body.get("tools") or [], body.get("tool_choice")
    if not tools or choice == "none" or body["messages"][-1].get("role") == "tool":
        return ()
    if isinstance(choice, Mapping):
        tools = [tool for tool in tools if tool["function"]["name"] == choice["function"]["name"]]
    elif body.get("parallel_tool_calls") is False:
        tools = tools[:1]
    functions = [tool["function"] for tool in tools]
    return tuple(
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": f["name"], "arguments": json.dumps(_example(f.get("parameters") or {}))},
        }
        for number, f in enumerate(functions)
    )


def _example(schema: Mapping[str, Any]) -> Any:
    """The least value that fits a JSON schema of the usual kind."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: _example(part) for name, part in (schema.get("properties") or {}).items()}
    return _EXAMPLES.get(kind)


def _event(value: object) -> bytes:
    return b"data: " + _json(value) + b"\n\n"


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
