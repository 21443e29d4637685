"""From a caller's arguments to a request that is checked and decided: what Router and AsyncRouter share."""

from __future__ import annotations

import functools
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from router_ml import ceiling, policy
from router_ml.breaker import Breaker
from router_ml.catalog import Catalog, check_quality
from router_ml.ceiling import Reservation
from router_ml.classifier import ComplexityClassifier
from router_ml.decider import Decider, Pin
from router_ml.errors import InputError
from router_ml.exchange import Exchange, Query
from router_ml.failover import Result, RetryBudget, Step, failover
from router_ml.ledger import Ledger
from router_ml.needs import CHARS_PER_TOKEN, Needs, needs_of
from router_ml.profile import checked
from router_ml.provider import AsyncEndpoint, Endpoint
from router_ml.session import Held, Sessions
from router_ml.text import Prompt, judged_text, repaired, to_messages
from router_ml.types import Decision, Offer, Tier

MAX_SESSION_CHARS = 256
E = TypeVar("E", Endpoint, AsyncEndpoint)


class Intake(Generic[E]):
    """Everything of a router but the calling and the waiting: what it is made of, and how a request begins and ends."""

    _endpoint_type: type[E]

    def __init__(
        self,
        config: str | Path | Catalog | None = None,
        *,
        quality: float | None = None,
        classifier: ComplexityClassifier | None = None,
        ledger: Ledger | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """``config``: a router.toml, or ./router.toml where there is one, over the packaged catalog. ``quality`` in
        (0, 1] is the share of premium's quality to keep, 0.95 unless configured.

        Raises:
            ConfigError: a wrong configuration or quality.
            MissingKeyError: no provider of the route has its key in ``environ``.
            ArtefactError: no usable classifier.
            LedgerError: the ledger cannot be opened.
        """
        self.catalog = config if isinstance(config, Catalog) else Catalog.load(config)
        self.settings = self.catalog.settings
        self.quality = check_quality(self.settings.quality if quality is None else quality)
        self.classifier = classifier or ComplexityClassifier.load()
        self._decider = Decider(self.catalog, self.classifier, environ)
        self.ledger = ledger or Ledger(self.settings.database, prompts=self.settings.prompts)
        self.breaker = Breaker(
            failures=self.settings.breaker_failures, cooldown_s=self.settings.breaker_cooldown_s, now=time.monotonic
        )
        self._budget = RetryBudget()
        self._sessions = Sessions(ttl_s=self.settings.session_ttl_s, now=time.monotonic)
        self._environ = environ
        self._endpoints: dict[str, E] = {}
        self._lock = threading.Lock()

    def decide(
        self,
        prompt: Prompt,
        tier: Tier | str | None = None,
        *,
        model: str | None = None,
        quality: float | None = None,
        session: str | None = None,
        **openai_kwargs: Any,
    ) -> Decision:
        """Which tier and which offers ``complete`` would try, without calling anyone; same errors for bad input."""
        wanted = self.quality if quality is None else check_quality(quality)
        pin = self._pin(tier, model)
        needs = needs_of(to_messages(prompt), openai_kwargs)
        held = self._sessions.get(session) if session is not None else None
        return self._decider.decide(prompt, needs, wanted, pin=pin, held=held)

    def solution(self, quality: float | None = None) -> policy.Solution | None:
        """The price weight in force now with its evidence; None where a tier's price is unknown."""
        return self._decider.solution(self.quality if quality is None else check_quality(quality))

    def _exchange(
        self,
        prompt: Prompt,
        tier: Tier | str | None,
        model: str | None,
        quality: float | None,
        session: str | None,
        openai_kwargs: Mapping[str, Any],
    ) -> Exchange:
        """A request that is checked and decided, but not yet in the books."""
        if openai_kwargs.get("stream"):
            raise InputError("complete() returns whole answers: call stream() for a stream")
        if session is not None and not (isinstance(session, str) and len(session) <= MAX_SESSION_CHARS):
            raise InputError(f"session is a str of at most {MAX_SESSION_CHARS} characters")
        wanted = self.quality if quality is None else check_quality(quality)
        pin = self._pin(tier, model)
        messages = to_messages(prompt)
        params = checked({name: value for name, value in openai_kwargs.items() if name != "stream"})
        deadline_s = _deadline_s(params.pop("timeout", None), self.settings.deadline_s)
        params = repaired(params)
        if self.settings.max_usd_per_day is not None:
            params = ceiling.bounded(params, self.settings.ceiling_output_tokens)
        held = self._sessions.get(session) if session is not None else None
        needs = needs_of(messages, params)
        decision = self._decider.decide(prompt, needs, wanted, pin=pin, held=held)
        query = Query(messages, params, judged_text(prompt), session, deadline_s)
        reservations = self._reservations(decision, needs, query)
        plan_of = functools.partial(self._plan, deadline_s)
        return Exchange(uuid.uuid4().hex, query, reservations, plan_of, self.catalog, self._count_tokens)

    def _reservations(self, decision: Decision, needs: Needs, query: Query) -> Sequence[Reservation]:
        """The decision with the most it can cost, then what it may step down to."""
        settings = self.settings
        if settings.max_usd_per_day is None:
            return (Reservation(decision),)
        limit_nanousd, at = ceiling.to_nanousd(settings.max_usd_per_day), datetime.now(UTC)
        cheaper: list[Decision] = []
        if settings.on_ceiling == "step_down":
            cheaper = self._decider.stepped_down(decision, needs)

        def most(offers: Sequence[Offer]) -> int:
            return ceiling.most_nanousd(
                offers, self.catalog.providers, query.messages, query.params, max_attempts=settings.max_attempts, at=at
            )

        return [Reservation(each, most(each.offers), limit_nanousd) for each in (decision, *cheaper)]

    def _plan(self, deadline_s: float, decision: Decision) -> Generator[Step, Result, None]:
        return failover(
            decision.offers,
            deadline_s=deadline_s,
            attempt_timeout_s=self.settings.attempt_timeout_s,
            max_attempts=self.settings.max_attempts,
            breaker=self.breaker,
            budget=self._budget,
            now=time.monotonic,
        )

    def _pin(self, tier: Tier | str | None, model: str | None) -> Pin:
        if tier is None:
            return self._decider.pinned(model) if model is not None else None
        if model is not None:
            raise InputError("pass tier= or model=, not both")
        try:
            return Tier(tier)
        except ValueError:
            raise InputError(f"unknown tier {str(tier)[:80]!r}: it is one of {', '.join(Tier)}") from None

    def _end(self, exchange: Exchange) -> None:
        """All of an end but the books."""
        exchange.end()
        session = exchange.query.session
        if session is None or exchange.status != "answered":
            return
        last = exchange.attempts[-1]
        tokens = last.usage.input_tokens + last.usage.output_tokens if last.usage else 0
        # An answer by a stronger tier's standby is an accident that the conversation does not have to pay for.
        offer = last.offer if last.offer.tier == exchange.decision.tier else exchange.decision.offers[0]
        self._sessions.keep(session, Held(offer, tokens if offer == last.offer else 0))

    @functools.cached_property
    def _count_tokens(self) -> Callable[[str], int]:
        tokenizer = getattr(self.classifier.encoder, "tokenizer", None)
        count: Callable[[str], int] | None = getattr(tokenizer, "count", None)
        return count or (lambda text: -(-len(text) // CHARS_PER_TOKEN))

    def _endpoint(self, name: str) -> E:
        with self._lock:
            if name not in self._endpoints:
                provider = self.catalog.providers[name]
                key = self._environ[provider.key_env] if provider.key_env else None
                self._endpoints[name] = self._endpoint_type(provider, key)
            return self._endpoints[name]


def _deadline_s(timeout: object, default_s: float) -> float:
    """The caller's ``timeout`` in seconds. Raises InputError for what is none."""
    if timeout is None:
        return default_s
    seconds = getattr(timeout, "read", timeout)  # an httpx Timeout: the part that waits for the answer
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds <= 0:
        raise InputError(f"timeout = {timeout!r}: pass the request's deadline in seconds, above 0")
    return float(seconds)
