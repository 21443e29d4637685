"""From what a caller passes (a prompt, or chat messages) to the text that is judged, and to what may be sent.

What is judged of a conversation: the last user turn, with a little of the one turn before it. System, developer and
tool messages do not move it. One function does this for training and for serving.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from router_ml.errors import InputError

Messages: TypeAlias = Sequence[Any]
"""Chat messages as the OpenAI API takes them: mappings, or the SDK's own message objects."""
Prompt: TypeAlias = str | Messages

MAX_JUDGED_CHARS = 8_000
MAX_CONTEXT_CHARS = 400
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_TURNS = ("user", "assistant")


def judged_text(prompt: Prompt) -> str:
    """The text that decides the tier; "" where the last user turn has none (an image, say).

    At most ``MAX_JUDGED_CHARS`` + ``MAX_CONTEXT_CHARS`` characters, cut before any other work, so that a 10 MB prompt
    costs no more than a long one. Lone surrogates become U+FFFD.

    Raises:
        InputError: neither text nor messages, or messages without a user turn.
    """
    if isinstance(prompt, str):
        return _repair(_clip(prompt, MAX_JUDGED_CHARS))
    last, before = _last_turns(prompt)
    text = _clip(last, MAX_JUDGED_CHARS)
    if before:
        text = f"{text}\n\n{_clip(before, MAX_CONTEXT_CHARS)}"
    return _repair(text)


def to_messages(prompt: Prompt) -> list[Any]:
    """Chat messages to send, as mappings: a string becomes one user turn; lone surrogates, which JSON cannot carry,
    become U+FFFD.

    Raises:
        InputError: empty, neither text nor messages, or without a user turn.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise InputError("the prompt is empty: pass the text to be answered")
        return [{"role": "user", "content": _repair(prompt)}]
    _last_turns(prompt)
    return [repaired(message) for message in prompt]


def _last_turns(messages: object) -> tuple[str, str]:
    """Text of the last user turn and of the turn before it ("" where there is none)."""
    if not isinstance(messages, Sequence) or isinstance(messages, bytes | bytearray):
        raise InputError(f"a prompt is a str or a list of chat messages, not {type(messages).__name__}")
    last: str | None = None
    for number in range(len(messages) - 1, -1, -1):
        role = _field(messages[number], "role", number)
        if last is None and role == "user":
            last = _content(messages[number], number)
        elif last is not None and role in _TURNS:
            return last, _content(messages[number], number)
    if last is None:
        raise InputError(f"the {len(messages)} messages hold no user turn: nothing to answer")
    return last, ""


def _field(message: object, name: str, number: int) -> object:
    if isinstance(message, Mapping):
        return message.get(name)
    if hasattr(message, name):
        return getattr(message, name)
    raise InputError(f"messages[{number}] is {type(message).__name__}: a message has a role and a content")


def _content(message: object, number: int) -> str:
    content = _field(message, "content", number)
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, bytes | bytearray):
        return "\n".join(text for part in content if (text := _part_text(part)))
    raise InputError(f"messages[{number}].content is {type(content).__name__}: pass text or a list of content parts")


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) else getattr(part, "text", None)
    return text if isinstance(text, str) else ""


def _clip(text: str, max_chars: int) -> str:
    """The first three quarters and the last quarter of what is allowed: requests stand at either end."""
    if len(text) <= max_chars:
        return text
    tail = max_chars // 4
    return f"{text[: max_chars - tail - 1]}\n{text[-tail:]}"


def _repair(text: str) -> str:
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)


def repaired(value: Any) -> Any:
    """``value`` (of JSON, or the SDK's message objects) as plain JSON values without lone surrogates."""
    if isinstance(value, str):
        return _repair(value)
    if hasattr(value, "model_dump") and not isinstance(value, type):
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: repaired(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [repaired(item) for item in value]
    return value
