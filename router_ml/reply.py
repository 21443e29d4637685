"""Pure: what a provider sent, checked, and its errors as ours.

What the SDK passes off as success (HTML, ``choices: null``, an error in a 200 body, a stream without an end) is a
failure. Nothing here carries the SDK's own exceptions: those hold the request, with the key in its headers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from router_ml.errors import InputError, ProviderError, ProviderUnavailable, RequestRejected
from router_ml.types import Usage

if TYPE_CHECKING:
    import openai
    from openai.types import CompletionUsage
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

_REJECTED = {400, 413, 422}
_RETRYABLE = {408, 409, 424, 429}
_MAYBE_BILLED = {408, 499, 502, 504, 524}  # somebody in between gave up waiting; the model may have worked on
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "quota_exceeded"}
_MAX_PLAUSIBLE_TOKENS = 100_000_000
# What a delta can hold that a caller sees as the answer, beside a role.
_CONTENT_FIELDS = ("content", "tool_calls", "function_call", "refusal", "reasoning", "reasoning_content", "audio")
_TEXT_FIELDS = ("content", "refusal", "reasoning", "reasoning_content")


@dataclass(frozen=True, slots=True)
class Reply:
    """A checked answer. ``usage`` is None where the provider sent none."""

    response: ChatCompletion
    text: str
    usage: Usage | None
    reported_usd: Decimal | None


class Tally:
    """What has arrived of one stream."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._said: list[str] = []  # everything that is billed as output, reasoning and tool arguments too
        self._text: list[str] = []
        self._open = set[int]()
        self._ended = set[int]()
        self.usage: Usage | None = None
        self.reported_usd: Decimal | None = None

    @property
    def text(self) -> str:
        """The first choice's content."""
        return "".join(self._text)

    @property
    def said(self) -> str:
        return "".join(self._said)

    @property
    def begun(self) -> bool:
        """Something that a caller sees as an answer has arrived, or the end of an empty one."""
        return bool(self._said or self._open or self._ended)

    @property
    def complete(self) -> bool:
        """Every choice that began has given its finish_reason."""
        return bool(self._ended) and self._open <= self._ended

    def add(self, chunk: ChatCompletionChunk) -> bool:
        """Note a chunk; True where it brought content. Raises ProviderUnavailable where it is an error or nonsense."""
        if not hasattr(chunk, "choices") or getattr(chunk, "error", None):
            raise ProviderUnavailable(f"{self._who} sent an error in its stream", status=200, billed=None)
        self._note_usage(chunk)
        brought = False
        for choice in chunk.choices or ():
            for name in _CONTENT_FIELDS if choice.delta is not None else ():
                value = getattr(choice.delta, name, None)
                if value:
                    brought = True
                    self._open.add(choice.index)
                    self._said.append(value if name in _TEXT_FIELDS and isinstance(value, str) else _arguments(value))
                    if name == "content" and choice.index == 0:
                        self._text.append(value)
            if _broken(choice):
                raise ProviderUnavailable(f"{self._who} sent an error in its stream", status=200, billed=None)
            if choice.finish_reason is not None:
                self._ended.add(choice.index)
        return brought

    def unfinished(self) -> ProviderUnavailable:
        return ProviderUnavailable(f"{self._who} ended its stream without a finish_reason", status=200, billed=None)

    def _note_usage(self, chunk: ChatCompletionChunk) -> None:
        usage = chunk.usage
        inside = getattr(chunk, "x_groq", None)
        if usage is None and isinstance(inside, Mapping) and isinstance(inside.get("usage"), Mapping):
            from openai.types import CompletionUsage

            usage = CompletionUsage.model_construct(**inside["usage"])
        if usage is not None:
            self.usage, self.reported_usd = checked_usage(usage, self._who)


def _arguments(value: Any) -> str:
    """The text of tool calls, as far as it is the model's own."""
    calls = value if isinstance(value, list) else [value]
    functions = [getattr(call, "function", None) or call for call in calls]
    return "".join(f"{getattr(f, 'name', None) or ''}{getattr(f, 'arguments', None) or ''}" for f in functions)


def read(response: ChatCompletion, who: str) -> Reply:
    """Check what the SDK returned. Raises ProviderUnavailable where it is no answer."""
    choices = getattr(response, "choices", None)
    error = getattr(response, "error", None)  # a 200 with an error in it keeps the body's fields
    if error is None and isinstance(choices, list) and any(_broken(choice) for choice in choices):
        error = {}
    if error is not None or not isinstance(choices, list) or not choices or not getattr(choices[0], "message", None):
        code = f" ({_safe(error['code'])})" if isinstance(error, Mapping) and "code" in error else ""
        what = "an error in a 200 reply" + code if error is not None else f"no choices ({type(response).__name__})"
        raise ProviderUnavailable(f"{who} answered with {what}", status=200, billed=None)
    usage, reported_usd = checked_usage(response.usage, who) if response.usage is not None else (None, None)
    return Reply(response, choices[0].message.content or "", usage, reported_usd)


def _broken(choice: Any) -> bool:
    """OpenRouter's way of saying that the model behind it failed half way."""
    return getattr(choice, "error", None) is not None or getattr(choice, "finish_reason", None) == "error"


def checked_usage(usage: CompletionUsage, who: str) -> tuple[Usage, Decimal | None]:
    """Token counts, and the cost in USD where reported. Raises ProviderUnavailable for impossible ones."""
    try:
        read = read_usage(usage)
    except (TypeError, AttributeError):
        raise ProviderUnavailable(f"{who} reported token counts that are none", status=200, billed=None) from None
    counts = (read.input_tokens, read.output_tokens, read.cached_input_tokens, read.reasoning_tokens)
    if not all(isinstance(count, int) and 0 <= count <= _MAX_PLAUSIBLE_TOKENS for count in counts):
        raise ProviderUnavailable(f"{who} reported impossible token counts", status=200, billed=None)
    reported = getattr(usage, "cost", None)
    known = isinstance(reported, int | float) and math.isfinite(reported) and reported >= 0
    return read, Decimal(str(reported)) if known else None


def read_usage(usage: CompletionUsage) -> Usage:
    """Token counts in one form. Some providers keep thought tokens outside ``completion_tokens`` (Gemini) and cache
    hits in a field of their own (DeepSeek)."""
    inputs, outputs = usage.prompt_tokens or 0, usage.completion_tokens or 0
    inside, made = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = _part(inside, "cached_tokens") or getattr(usage, "prompt_cache_hit_tokens", None) or 0
    reasoning = _part(made, "reasoning_tokens") or 0
    outside = (usage.total_tokens or 0) - inputs - outputs
    if outside > 0:
        outputs, reasoning = outputs + outside, max(reasoning, outside)
    return Usage(inputs, outputs, cached, reasoning)


def _part(details: Any, name: str) -> Any:
    return details.get(name) if isinstance(details, Mapping) else getattr(details, name, None)


def translate(exc: Exception, who: str, api_key: str | None) -> ProviderError | InputError:
    """Their exception as ours, without key and prompt."""
    import openai

    if isinstance(exc, openai.APITimeoutError | TimeoutError):
        unconnected = type(exc.__cause__).__name__ == "ConnectTimeout"
        return ProviderUnavailable(f"{who} did not answer in time", billed=False if unconnected else None)
    if isinstance(exc, openai.APIStatusError):
        return _status_error(exc, who, api_key)
    if isinstance(exc, openai.APIConnectionError):
        cause = type(exc.__cause__).__name__
        if cause == "LocalProtocolError":  # keys and addresses are checked before: this came from the caller
            return InputError("extra_headers hold what no HTTP header can carry")
        if cause == "DecodingError":
            return ProviderUnavailable(
                f"{who} answered with a body that cannot be unpacked or is too large", billed=None
            )
        # A refused connection has done no work; one that broke later may have.
        return ProviderUnavailable(
            f"{who} could not be reached ({cause})", billed=False if "Connect" in cause else None
        )
    if isinstance(exc, openai.APIError):
        return ProviderUnavailable(f"{who} sent an error in a 200 reply", status=200, billed=None)
    if isinstance(exc, openai.OpenAIError):
        return ProviderUnavailable(f"{who}: the SDK refused the call ({type(exc).__name__})", retryable=False)
    if isinstance(exc, TypeError | UnicodeEncodeError):
        return InputError(f"chat.completions.create does not take these arguments ({type(exc).__name__} in the SDK)")
    what = "what is not JSON" if isinstance(exc, json.JSONDecodeError) else type(exc).__name__
    return ProviderUnavailable(f"{who} answered with {what}", billed=None)


def _status_error(exc: openai.APIStatusError, who: str, api_key: str | None) -> ProviderError:
    status, code = exc.status_code, _safe(exc.code)
    detail = str(exc.message)[:2_000]
    if api_key:
        detail = detail.replace(api_key, "[key]")
    message = f"{who} answered {status}{', ' if code else ''}{code}"
    if status in _REJECTED:
        return RequestRejected(f"{message}: it refuses the request (see .detail)", status=status, detail=detail)
    return ProviderUnavailable(
        message,
        retryable=(status in _RETRYABLE or status >= 500) and code not in _QUOTA_CODES,
        status=status,
        detail=detail,
        retry_after_s=_retry_after_s(exc.response.headers),
        billed=None if status in _MAYBE_BILLED else False,
    )


def _safe(code: object) -> str:
    """A provider's error code where it is a plain word, so that it cannot forge a log line; else ""."""
    word = str(code or "")
    return word if word.isascii() and word.replace("_", "").isalnum() and len(word) <= 40 else ""


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by Retry-After (a number or a date); None where it is absent or nonsense."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
