"""One call to one OpenAI-compatible endpoint, through the openai SDK.

The only module that knows the SDK: a provider's profile shapes the request here, its reply is checked and its errors
become ours here. What the SDK passes off as success (HTML, ``choices: null``, an error in a 200 body) is a failure.
No exception that leaves this module carries the SDK's own: those hold the request, with the key in its headers.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from router_ml.errors import ConfigError, InputError, ProviderError, ProviderUnavailable, RequestRejected
from router_ml.types import Offer, Provider, Usage

if TYPE_CHECKING:
    import openai
    from openai.types import CompletionUsage
    from openai.types.chat import ChatCompletion

_log = logging.getLogger(__name__)
_REJECTED = {400, 413, 422}
_RETRYABLE = {408, 409, 424, 429}
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "quota_exceeded"}
_MAX_PLAUSIBLE_TOKENS = 100_000_000


@dataclass(frozen=True, slots=True)
class Reply:
    """A checked answer. ``usage`` is None where the provider sent none."""

    response: ChatCompletion
    text: str
    usage: Usage | None
    reported_usd: Decimal | None


class Endpoint:
    """A provider with its key, ready to be called; thread-safe, connections are kept."""

    def __init__(self, provider: Provider, api_key: str | None) -> None:
        """``api_key`` None where the provider needs none. Raises ConfigError for a key no HTTP header can carry."""
        import openai

        if api_key is not None and (not api_key.isascii() or not api_key.isprintable() or " " in api_key):
            raise ConfigError(f"{provider.key_env} holds blanks, line ends or other characters no API key has")
        self.provider = provider
        self._api_key = api_key
        self._said: set[str] = set()
        # The SDK asks for a key even where the endpoint does not.
        self._client = openai.OpenAI(api_key=api_key or "none", base_url=provider.base_url, max_retries=0, timeout=None)

    def complete(self, offer: Offer, messages: Sequence[Any], params: Mapping[str, Any], timeout_s: float) -> Reply:
        """One attempt. ``params`` are keyword arguments of ``chat.completions.create``.

        Raises:
            RequestRejected: the provider refuses the request as such.
            ProviderUnavailable: no usable answer, for any other reason.
            InputError: ``params`` holds an argument the SDK does not know.
        """
        import openai

        request, dropped = outgoing(self.provider, offer, messages, params)
        self._say_once(dropped)
        failure: ProviderError | InputError
        try:
            response = self._client.chat.completions.create(**request, timeout=timeout_s)
        except TypeError as exc:
            failure = InputError(f"chat.completions.create does not take these arguments: {exc}")
        except (openai.OpenAIError, ValueError) as exc:  # ValueError: a body that is not JSON
            failure = _translate(exc, str(offer), self._api_key)
        else:
            return read(response, str(offer))
        raise failure  # outside the except clause, so that it has no context

    def close(self) -> None:
        self._client.close()

    def _say_once(self, dropped: Sequence[str]) -> None:
        for name in dropped:
            if name not in self._said:
                self._said.add(name)
                _log.warning("%s does not support %s: left out of its requests", self.provider.name, name)


def outgoing(
    provider: Provider, offer: Offer, messages: Sequence[Any], params: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The SDK call as the provider's profile wants it, and the names of what had to be left out."""
    dropped = [name for name in params if name in provider.drop_params]
    request = {name: value for name, value in params.items() if name not in provider.drop_params}
    body: dict[str, Any] = {**provider.extra_body, **offer.extra_body, **(request.pop("extra_body", None) or {})}
    for name, values in provider.rename_values.items():
        if isinstance(request.get(name), str):
            request[name] = values.get(request[name], request[name])
    for name, theirs in provider.rename_params.items():
        if name in request:
            body[theirs] = request.pop(name)  # through the body: the SDK's signature may not know their name
    temperature = request.get("temperature")
    if provider.max_temperature is not None and isinstance(temperature, int | float):
        request["temperature"] = min(temperature, provider.max_temperature)
    if provider.drop_message_fields:
        dropped += sorted(
            {f"messages[].{field}" for field in provider.drop_message_fields for m in messages if field in m}
        )
        messages = [
            {key: value for key, value in message.items() if key not in provider.drop_message_fields}
            if isinstance(message, Mapping)
            else message
            for message in messages
        ]
    request |= {"model": offer.model, "messages": list(messages)}
    if body:
        request["extra_body"] = body
    return request, dropped


def read(response: ChatCompletion, who: str) -> Reply:
    """Check what the SDK returned. Raises ProviderUnavailable where it is no answer."""
    choices = getattr(response, "choices", None)
    if not choices or choices[0].message is None:
        error = getattr(response, "error", None)  # a 200 with an error in it keeps the body's fields
        code = f" ({error['code']})" if isinstance(error, Mapping) and "code" in error else ""
        what = "an error in a 200 reply" + code if error else f"no choices ({type(response).__name__})"
        raise ProviderUnavailable(f"{who} answered with {what}", status=200, billed=None)
    usage = read_usage(response.usage) if response.usage is not None else None
    if usage is not None and not _plausible(usage):
        raise ProviderUnavailable(f"{who} reported impossible token counts: {usage}", status=200, billed=None)
    reported = getattr(response.usage, "cost", None)
    known = isinstance(reported, int | float) and math.isfinite(reported) and reported >= 0
    return Reply(response, choices[0].message.content or "", usage, Decimal(str(reported)) if known else None)


def read_usage(usage: CompletionUsage) -> Usage:
    """Token counts in one form. Some providers keep thought tokens outside ``completion_tokens`` (Gemini) and cache
    hits in a field of their own (DeepSeek)."""
    inputs, outputs = usage.prompt_tokens or 0, usage.completion_tokens or 0
    inside, made = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = (inside.cached_tokens if inside else None) or getattr(usage, "prompt_cache_hit_tokens", None) or 0
    reasoning = (made.reasoning_tokens if made else None) or 0
    outside = (usage.total_tokens or 0) - inputs - outputs
    if outside > 0:
        outputs, reasoning = outputs + outside, max(reasoning, outside)
    return Usage(inputs, outputs, cached, reasoning)


def _plausible(usage: Usage) -> bool:
    counts = (usage.input_tokens, usage.output_tokens, usage.cached_input_tokens, usage.reasoning_tokens)
    return all(isinstance(count, int) and 0 <= count <= _MAX_PLAUSIBLE_TOKENS for count in counts)


def _translate(exc: openai.OpenAIError | ValueError, who: str, api_key: str | None) -> ProviderError:
    """Their exception as ours, without key and prompt."""
    import openai

    if isinstance(exc, openai.APITimeoutError):
        return ProviderUnavailable(f"{who} did not answer in time", billed=None)
    if isinstance(exc, openai.APIStatusError):
        return _status_error(exc, who, api_key)
    if isinstance(exc, openai.APIConnectionError):
        cause = type(exc.__cause__).__name__
        # A refused connection has done no work; one that broke later may have.
        return ProviderUnavailable(
            f"{who} could not be reached ({cause})", billed=False if "Connect" in cause else None
        )
    if isinstance(exc, openai.OpenAIError) and not isinstance(exc, openai.APIError):
        return ProviderUnavailable(f"{who}: the SDK refused the call ({type(exc).__name__})", retryable=False)
    what = "a body that is not JSON" if isinstance(exc, json.JSONDecodeError) else f"{type(exc).__name__}"
    return ProviderUnavailable(f"{who} answered with {what}", billed=None)


def _status_error(exc: openai.APIStatusError, who: str, api_key: str | None) -> ProviderError:
    status, code = exc.status_code, str(exc.code or "")
    detail = str(exc.message)[:2_000]
    if api_key:
        detail = detail.replace(api_key, "[key]")
    note = f", {code}" if code.isascii() and code.replace("_", "").isalnum() and len(code) <= 40 else ""
    message = f"{who} answered {status}{note}"
    if status in _REJECTED:
        return RequestRejected(f"{message}: it refuses the request (see .detail)", status=status, detail=detail)
    retryable = (status in _RETRYABLE or status >= 500) and code not in _QUOTA_CODES
    asked = _retry_after_s(exc.response.headers)
    return ProviderUnavailable(message, retryable=retryable, status=status, detail=detail, retry_after_s=asked)


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
