"""Router: classify, decide, call, fail over, log. The only module that knows the others."""

from __future__ import annotations

import functools
import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from router_ml import ceiling, policy, pricing
from router_ml.catalog import Catalog, check_quality
from router_ml.classifier import ComplexityClassifier
from router_ml.errors import (
    InputError,
    MissingKeyError,
    ProviderError,
    RequestFailed,
    RequestRejected,
    SpendCeilingReached,
)
from router_ml.failover import failover
from router_ml.ledger import Ledger
from router_ml.provider import Endpoint, Reply
from router_ml.text import Prompt, judged_text, to_messages
from router_ml.types import TIERS, Attempt, Completion, Complexity, Cost, Decision, Offer, Outcome, Tier, Usage

CHARS_PER_TOKEN = 4  # of the estimate a price is weighed with; what is billed is what the provider counts
_SAMPLE_TOKENS = 1_000


class Router:
    """Sends each prompt to the cheapest tier that is worth it, and keeps the books. Thread-safe.

    >>> router = Router()
    >>> reply = router.complete("Explain vector databases in 3 sentences.")
    """

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
        self._offers = _usable_offers(self.catalog, environ)
        self._environ = environ
        self.classifier = classifier or ComplexityClassifier.load()
        self.ledger = ledger or Ledger(self.settings.database, prompts=self.settings.prompts)
        self._endpoints: dict[str, Endpoint] = {}
        self._lock = threading.Lock()
        self._solve = functools.lru_cache(maxsize=64)(self._solve_uncached)

    def complete(
        self, prompt: Prompt, tier: Tier | str | None = None, *, quality: float | None = None, **openai_kwargs: Any
    ) -> Completion:
        """Answer a prompt or a conversation; ``tier`` pins one, ``openai_kwargs`` go to ``chat.completions.create``.

        Raises:
            InputError: an empty prompt, no user turn, an unknown tier, or an argument the API does not have.
            ConfigError: ``quality`` outside (0, 1].
            RequestRejected: the provider refuses the request as such (400, 413, 422).
            RequestFailed: no offer answered within the deadline; carries every attempt.
            SpendCeilingReached: ``max_usd_per_day`` leaves no room for it.
        """
        if openai_kwargs.get("stream"):
            raise InputError("complete() returns whole answers: stream=True is not supported")
        if "model" in openai_kwargs:
            raise InputError("complete() chooses the model: pass tier= to pin one, or edit router.toml")
        messages = to_messages(prompt)
        decision = self.decide(prompt, tier, quality=quality, max_tokens=_max_tokens(openai_kwargs))
        request_id = uuid.uuid4().hex
        decision, openai_kwargs = self._start(request_id, decision, prompt, messages, openai_kwargs)
        attempts: list[Attempt] = []
        status = "interrupted"  # what the books say if anything but an answer or our own errors ends this
        try:
            reply = self._answer(request_id, decision, messages, openai_kwargs, attempts)
            status = "answered"
        except (ProviderError, RequestFailed, InputError):
            status = "failed"
            raise
        finally:
            self.ledger.finish(request_id, status, attempts, datetime.now(UTC))
        return Completion(request_id, reply.text, reply.response, decision, tuple(attempts))

    def decide(
        self,
        prompt: Prompt,
        tier: Tier | str | None = None,
        *,
        quality: float | None = None,
        max_tokens: int | None = None,
    ) -> Decision:
        """Which tier and which offers ``complete`` would try, without calling anyone; same errors for bad input."""
        wanted = self.quality if quality is None else check_quality(quality)
        if tier is not None:
            pinned = _tier(tier)
            return Decision(pinned, self._ordered(pinned), f"{pinned} was asked for", policy_version="pinned")
        complexity = self.classifier.classify(prompt)
        chosen, reason = self._choose(complexity, _input_tokens(prompt), max_tokens, wanted)
        return Decision(chosen, self._ordered(chosen), reason, complexity, wanted, policy_version=policy.VERSION)

    def feedback(self, request_id: str, score: float, *, source: str = "user") -> None:
        """Note how good an answer was, 0..1. The same source's later word replaces its earlier one.

        Raises:
            InputError: score outside 0..1.
            LedgerError: the ledger does not know the request.
        """
        self.ledger.add_outcome(Outcome(request_id, score, source, datetime.now(UTC)))

    def solution(self, quality: float | None = None) -> policy.Solution | None:
        """The price weight in force now with its evidence; None where a tier's price is unknown."""
        hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        return self._solve(self.quality if quality is None else check_quality(quality), hour)[0]

    def close(self) -> None:
        """Let go of connections and write what the ledger still holds."""
        for endpoint in self._endpoints.values():
            endpoint.close()
        self.ledger.close()

    def __enter__(self) -> Router:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _choose(
        self, complexity: Complexity, input_tokens: float, max_tokens: int | None, quality: float
    ) -> tuple[Tier, str]:
        solution, rates = self._solve(quality, datetime.now(UTC).replace(minute=0, second=0, microsecond=0))
        p = ", ".join(f"{tier} {complexity.success[tier]:.2f}" for tier in TIERS)
        if solution is None:
            return complexity.tier, f"most probable tier (success {p}); prices are unknown, so they are not weighed"
        expected = self.settings.expected_output_tokens
        output_tokens = min(expected, max_tokens) if max_tokens else expected
        cost_usd = {tier: rates[tier].cost_usd(input_tokens, output_tokens) for tier in TIERS}
        tier = policy.choose(complexity.success, cost_usd, solution.price_weight)
        return tier, f"success {p}; best worth its expected ${cost_usd[tier]:.6f} at quality {quality:g}"

    def _solve_uncached(
        self, quality: float, hour: datetime
    ) -> tuple[policy.Solution | None, dict[Tier, policy.Rates]]:
        rates = {tier: self._rates(self._ordered(tier)[0], hour) for tier in TIERS}
        known = {tier: rate for tier, rate in rates.items() if rate is not None}
        if len(known) < len(TIERS):
            return None, known
        output_tokens = self.settings.expected_output_tokens
        return policy.solve(self.classifier.calibration, known, quality, output_tokens), known

    def _rates(self, offer: Offer, at: datetime) -> policy.Rates | None:
        provider = self.catalog.providers[offer.provider]
        inputs = pricing.cost(offer, provider, Usage(_SAMPLE_TOKENS, 0), at).usd
        outputs = pricing.cost(offer, provider, Usage(0, _SAMPLE_TOKENS), at).usd
        if inputs is None or outputs is None:
            return None
        return policy.Rates(float(inputs) / _SAMPLE_TOKENS, float(outputs) / _SAMPLE_TOKENS)

    def _ordered(self, tier: Tier) -> tuple[Offer, ...]:
        """The tier's offers in route order, then stronger tiers': a failing tier is never answered by a weaker one."""
        return tuple(offer for stronger in TIERS if stronger >= tier for offer in self._offers[stronger])

    def _start(
        self, request_id: str, decision: Decision, prompt: Prompt, messages: list[Any], params: dict[str, Any]
    ) -> tuple[Decision, dict[str, Any]]:
        """Enter the request in the books, with its worst case reserved where there is a ceiling; the decision and the
        arguments to go on with. Raises SpendCeilingReached."""
        text, at, limit_usd = judged_text(prompt), datetime.now(UTC), self.settings.max_usd_per_day
        if limit_usd is None:
            self.ledger.start(request_id, decision, text, at)
            return decision, params
        output_tokens = _max_tokens(params)
        if output_tokens is None:
            output_tokens = self.settings.ceiling_output_tokens
            params = {**params, "max_tokens": output_tokens}
        candidates = [decision, *(self._stepped_down(decision) if self.settings.on_ceiling == "step_down" else ())]
        for candidate in candidates:
            most = ceiling.most_nanousd(
                candidate.offers,
                self.catalog.providers,
                messages,
                params,
                output_tokens=output_tokens,
                max_attempts=self.settings.max_attempts,
                at=at,
            )
            try:
                limit = ceiling.to_nanousd(limit_usd)
                self.ledger.start(request_id, candidate, text, at, reserve_nanousd=most, ceiling_nanousd=limit)
            except SpendCeilingReached as exc:
                if candidate is candidates[-1] or exc.spent_usd is None:
                    raise
            else:
                return candidate, params
        raise AssertionError("the last candidate is entered or raises")

    def _stepped_down(self, decision: Decision) -> list[Decision]:
        """The decision with its tier's own offers alone, then each weaker tier; a tier that was asked for stays."""
        weaker = [tier for tier in reversed(TIERS) if tier <= decision.tier]
        if decision.complexity is None:
            weaker = weaker[:1]
        note = "; under the day's spend ceiling"
        return [replace(decision, tier=t, offers=self._offers[t], reason=f"{decision.reason}{note}") for t in weaker]

    def _answer(
        self,
        request_id: str,
        decision: Decision,
        messages: list[Any],
        params: Mapping[str, Any],
        attempts: list[Attempt],
    ) -> Reply:
        """Drive the failover until an offer answers, noting every attempt in ``attempts``."""
        plan = failover(
            decision.offers,
            deadline_s=self.settings.deadline_s,
            attempt_timeout_s=self.settings.attempt_timeout_s,
            max_attempts=self.settings.max_attempts,
            now=time.monotonic,
        )
        step = next(plan, None)
        while step is not None:
            time.sleep(step.delay_s)
            outcome = self._attempt(step.offer, messages, params, step.timeout_s, attempts)
            if isinstance(outcome, Reply):
                return outcome
            if isinstance(outcome, RequestRejected):
                raise outcome
            try:
                step = plan.send(outcome)
            except StopIteration:
                step = None
        tried = "; ".join(f"{attempt.error}" for attempt in attempts)
        message = f"no offer answered within {self.settings.deadline_s:g} s and {len(attempts)} attempts: {tried}"
        raise RequestFailed(message, request_id=request_id, attempts=attempts)

    def _attempt(
        self, offer: Offer, messages: list[Any], params: Mapping[str, Any], timeout_s: float, attempts: list[Attempt]
    ) -> Reply | ProviderError:
        started_at, clock = datetime.now(UTC), time.perf_counter()
        usage, cost = None, Cost(None)
        error: str | None = "interrupted"
        try:
            reply = self._endpoint(offer.provider).complete(offer, messages, params, timeout_s)
            usage = reply.usage
            cost = pricing.cost(
                offer, self.catalog.providers[offer.provider], usage, started_at, reported_usd=reply.reported_usd
            )
            error = None
        except ProviderError as failure:
            error = str(failure)
            cost = Cost(None) if failure.billed is None else Cost(pricing.ZERO, "unbilled")
            return failure
        finally:
            duration_ms = (time.perf_counter() - clock) * 1_000
            attempts.append(Attempt(offer, started_at, duration_ms, usage, cost, error))
        return reply

    def _endpoint(self, name: str) -> Endpoint:
        with self._lock:
            if name not in self._endpoints:
                provider = self.catalog.providers[name]
                key = self._environ[provider.key_env] if provider.key_env else None
                self._endpoints[name] = Endpoint(provider, key)
            return self._endpoints[name]


@functools.cache
def _default_router() -> Router:
    return Router()


def classify_and_complete(prompt: Prompt, **kwargs: Any) -> Completion:
    """``Router().complete(prompt, ...)`` on one router kept for the process."""
    return _default_router().complete(prompt, **kwargs)


def _usable_offers(catalog: Catalog, environ: Mapping[str, str]) -> dict[Tier, tuple[Offer, ...]]:
    """The routed offers whose provider has its key. Raises MissingKeyError where a tier is left with none."""
    usable: dict[Tier, tuple[Offer, ...]] = {}
    for tier in TIERS:
        routed = catalog.routed(tier)
        envs = {offer: catalog.providers[offer.provider].key_env for offer in routed}
        usable[tier] = tuple(offer for offer in routed if (env := envs[offer]) is None or environ.get(env))
        if not usable[tier]:
            names = " or ".join(dict.fromkeys(env for env in envs.values() if env))
            raise MissingKeyError(f"no API key: set the environment variable {names}")
    return usable


def _tier(name: Tier | str) -> Tier:
    try:
        return Tier(name)
    except ValueError:
        raise InputError(f"unknown tier {name!r}: it is one of {', '.join(TIERS)}") from None


def _max_tokens(params: Mapping[str, Any]) -> int | None:
    limit = params.get("max_completion_tokens") or params.get("max_tokens")
    return limit if isinstance(limit, int) else None


def _input_tokens(prompt: Prompt) -> float:
    """An estimate from the characters of everything that is sent."""
    if isinstance(prompt, str):
        return len(prompt) / CHARS_PER_TOKEN
    contents = (
        message.get("content") if isinstance(message, Mapping) else getattr(message, "content", None)
        for message in prompt
    )
    return sum(len(content) if isinstance(content, str) else 0 for content in contents) / CHARS_PER_TOKEN
