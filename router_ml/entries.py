"""What is written of a request: one entry when it starts, one when it is finished.

An entry holds nothing but what JSON can carry, in the form both databases take, so that it can wait in a spool and be
written by another process, twice if need be, with the same result.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal, TypeAlias

from router_ml.types import TIERS, Attempt, Decision

Prompts = Literal["full", "hash", "off"]
Row: TypeAlias = tuple[str | int | float | None, ...]

NANO = Decimal(1_000_000_000)
START_COLUMNS = (
    *("request_id", "started_at", "status", "prompt", "prompt_sha256", "tier", "reason"),
    *(f"success_{tier}" for tier in TIERS),
    *("quality", "propensity", "classifier_version", "policy_version", "writer_id", "charged_nanousd"),
)
ATTEMPT_COLUMNS = (
    *("request_id", "number", "provider", "model", "tier", "started_at", "duration_ms"),
    *("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens"),
    *("cost_nanousd", "cost_source", "error", "first_content_ms"),
)
_MAX_BIGINT = 2**63 - 1
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # PostgreSQL takes no NUL, UTF-8 no lone surrogate


@dataclass(frozen=True, slots=True)
class Start:
    """A request about to be sent: its row by ``START_COLUMNS``. With a ceiling, it is only written where the day's
    charges and this row's fit under it."""

    row: Row
    ceiling_nanousd: int | None = None

    @property
    def request_id(self) -> str:
        return str(self.row[0])

    @property
    def day(self) -> str:
        return str(self.row[1])[:10]

    @property
    def reserved_nanousd(self) -> int:
        return int(self.row[-1] or 0)


@dataclass(frozen=True, slots=True)
class Finish:
    """How a request ended, with its attempts' rows by ``ATTEMPT_COLUMNS``.

    ``day`` and ``reserved_nanousd`` repeat what its start said, None where that is not known here. ``billed_nanousd``
    is the sum of the known costs, ``all_known`` whether there are no others.
    """

    request_id: str
    status: str
    finished_at: str
    cost_nanousd: int | None
    billed_nanousd: int
    all_known: bool
    attempts: tuple[Row, ...]
    day: str | None = None
    reserved_nanousd: int | None = None

    def charged_nanousd(self, reserved_nanousd: int) -> int:
        """What counts against a ceiling: a call that may have been billed counts with all that was reserved."""
        return self.billed_nanousd if self.all_known else max(self.billed_nanousd, reserved_nanousd)


Entry: TypeAlias = Start | Finish


def start_entry(
    request_id: str,
    decision: Decision,
    judged_text: str,
    at: datetime,
    *,
    prompts: Prompts,
    writer_id: str,
    reserve_nanousd: int = 0,
    ceiling_nanousd: int | None = None,
) -> Start:
    complexity = decision.complexity
    success = complexity.success if complexity else {}
    full = _text(judged_text) if prompts == "full" else None
    sha256 = None if prompts == "off" else hashlib.sha256(judged_text.encode("utf-8", "replace")).hexdigest()
    row: Row = (
        *(request_id, timestamp(at), "started", full, sha256, decision.tier.value, _text(decision.reason)),
        *(float(success[tier]) if complexity else None for tier in TIERS),
        *(decision.quality, decision.propensity, complexity.classifier_version[:64] if complexity else None),
        *(_text(decision.policy_version, 64), writer_id, reserve_nanousd),
    )
    return Start(row, ceiling_nanousd)


def finish_entry(
    request_id: str,
    status: str,
    attempts: Sequence[Attempt],
    at: datetime,
    day: str | None = None,
    reserved_nanousd: int | None = None,
) -> Finish:
    rows = tuple(_attempt_row(request_id, number, attempt) for number, attempt in enumerate(attempts, 1))
    costs = [nanousd(attempt.cost.usd) for attempt in attempts]
    known = [cost for cost in costs if cost is not None]
    answer_known = bool(costs) and (status != "answered" or costs[-1] is not None)
    billed = sum(known)
    return Finish(
        request_id,
        status,
        timestamp(at),
        billed if answer_known and known else None,
        billed,
        len(known) == len(costs),
        rows,
        day,
        reserved_nanousd,
    )


def to_line(entry: Entry) -> bytes:
    """One line of a spool."""
    if isinstance(entry, Start):
        return _json(["start", entry.row, entry.ceiling_nanousd])
    fields = [getattr(entry, name) for name in Finish.__slots__]
    return _json(["finish", *fields])


def from_line(line: bytes) -> Entry:
    """Raises ValueError for anything ``to_line`` does not write."""
    kind, *fields = json.loads(line)
    if kind == "start" and len(fields) == 2 and len(fields[0]) == len(START_COLUMNS):
        return Start(tuple(fields[0]), fields[1])
    if kind == "finish" and len(fields) == len(Finish.__slots__):
        attempts = Finish.__slots__.index("attempts")
        fields[attempts] = tuple(tuple(row) for row in fields[attempts])
        return Finish(*fields)
    raise ValueError(f"not an entry of the ledger: {kind!r} with {len(fields)} fields")


def timestamp(at: datetime) -> str:
    """Naive UTC, as SQLAlchemy writes it to SQLite and as PostgreSQL reads it."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


def nanousd(usd: Decimal | None) -> int | None:
    """None for an unknown cost, and for a claim that no column can hold (some nine billion dollars)."""
    if usd is None:
        return None
    value = int((usd * NANO).to_integral_value())
    return value if abs(value) <= _MAX_BIGINT else None


def _attempt_row(request_id: str, number: int, attempt: Attempt) -> Row:
    usage, cost, offer = attempt.usage, attempt.cost, attempt.offer
    counts = (
        (usage.input_tokens, usage.cached_input_tokens, usage.output_tokens, usage.reasoning_tokens)
        if usage
        else (None,) * 4
    )
    return (
        *(request_id, number, _text(offer.provider, 64), _text(offer.model, 255), offer.tier.value),
        *(timestamp(attempt.started_at), attempt.duration_ms, *counts),
        *(nanousd(cost.usd), cost.source, None if attempt.error is None else _text(attempt.error)),
        attempt.first_content_ms,
    )


def _text(text: str, limit: int | None = None) -> str:
    """What both databases store the same: no NUL, no lone surrogate, no longer than the column."""
    cut = text[:limit]
    return cut if cut.isascii() and "\0" not in cut else _UNSTORABLE.sub("\ufffd", cut)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
