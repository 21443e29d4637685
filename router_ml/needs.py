"""Pure: what a request needs of a model, and which offers meet it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router_ml.types import Offer

CHARS_PER_TOKEN = 4  # of estimates made before anything is sent; what is billed is what the provider counts


@dataclass(frozen=True, slots=True)
class Needs:
    """``input_tokens`` is an estimate from characters that rather errs low, so that no offer is left out wrongly."""

    input_tokens: float
    max_output_tokens: int | None = None
    capabilities: frozenset[str] = frozenset()


def needs_of(messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]) -> Needs:
    """Of a request to ``chat.completions.create``."""
    wanted = set[str]()
    if params.get("tools") or params.get("functions"):
        wanted.add("tools")
    response_format = params.get("response_format")
    if isinstance(response_format, Mapping) and response_format.get("type") == "json_schema":
        wanted.add("json_schema")
    if any(part.get("type") == "image_url" for message in messages for part in _parts(message)):
        wanted.add("images")
    limit = params.get("max_completion_tokens") or params.get("max_tokens")
    characters = sum(len(text) for message in messages for text in texts_of(message))
    return Needs(characters / CHARS_PER_TOKEN, limit if isinstance(limit, int) else None, frozenset(wanted))


def texts_of(message: Mapping[str, Any]) -> list[str]:
    """Every text of a message."""
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    return [text for part in _parts(message) if isinstance(text := part.get("text"), str)]


def unmet(offer: Offer, needs: Needs) -> list[str]:
    """What ``offer`` is known not to give, in words; empty where it may serve."""
    lacking = []
    if offer.capabilities:
        lacking = [f"no {name}" for name in sorted(needs.capabilities - offer.capabilities)]
    wanted = needs.input_tokens + (needs.max_output_tokens or 0)
    if offer.context_tokens is not None and wanted > offer.context_tokens:
        lacking.append(f"{offer.context_tokens:,} tokens of context where about {wanted:,.0f} are needed")
    return lacking


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
