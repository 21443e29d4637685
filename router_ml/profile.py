"""Pure: the request as a provider's profile wants it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from router_ml.errors import InputError
from router_ml.types import Offer, Provider

_OURS = {"self", "model", "messages", "stream"}


@functools.cache
def known_arguments() -> frozenset[str]:
    """The arguments of ``chat.completions.create`` that a caller may pass on."""
    from openai.resources.chat import Completions

    return frozenset(inspect.signature(Completions.create).parameters) - _OURS


def checked(params: Mapping[str, Any]) -> dict[str, Any]:
    """``params`` without those left at the SDK's "not given". Raises InputError for one that the API does not have."""
    import openai

    unknown = sorted(params.keys() - known_arguments())
    if unknown:
        raise InputError(f"chat.completions.create has no argument {', '.join(unknown)}")
    return {name: value for name, value in params.items() if not isinstance(value, openai.NotGiven | openai.Omit)}


def outgoing(
    provider: Provider, offer: Offer, messages: Sequence[Any], params: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The JSON body as the profile wants it (with ``extra_headers`` and ``extra_query`` still beside), and the
    names of what had to be left out."""
    dropped = [name for name in params if name in provider.drop_params]
    request = {name: value for name, value in params.items() if name not in provider.drop_params}
    extra = {**provider.extra_body, **offer.extra_body, **(request.pop("extra_body", None) or {})}
    for name, values in provider.rename_values.items():
        if isinstance(request.get(name), str):
            request[name] = values.get(request[name], request[name])
    for name, theirs in provider.rename_params.items():
        if name in request:
            request[theirs] = request.pop(name)
    temperature = request.get("temperature")
    if provider.max_temperature is not None and isinstance(temperature, int | float):
        request["temperature"] = min(temperature, provider.max_temperature)
    if provider.drop_message_fields:
        dropped += sorted(
            {f"messages[].{field}" for field in provider.drop_message_fields for m in messages if field in m}
        )
        messages = [
            {key: value for key, value in message.items() if key not in provider.drop_message_fields}
            for message in messages
        ]
    return {**request, "model": offer.model, "messages": list(messages), **extra}, dropped


def streaming(provider: Provider, request: dict[str, Any]) -> dict[str, Any]:
    """``request`` as a stream that reports its token counts, where the provider can."""
    options = dict(request.pop("stream_options", None) or {})
    if provider.stream_usage == "request":
        options["include_usage"] = True
    elif provider.stream_usage == "unsupported":
        options.pop("include_usage", None)
    return {**request, "stream": True, **({"stream_options": options} if options else {})}


def without_refused(provider: Provider, request: Mapping[str, Any], complaint: str) -> tuple[dict[str, Any], list[str]]:
    """``request`` without the optional parameters that the provider's ``complaint`` names, and their names."""
    words = set("".join(char if char.isalnum() or char == "_" else " " for char in complaint).split())
    refused = sorted(name for name in provider.retry_without if name in words and name in request)
    return {name: value for name, value in request.items() if name not in refused}, refused
