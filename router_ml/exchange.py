"""One request under way: its plan, its attempts and how it ended. No I/O, so that both routers share it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from router_ml import pricing
from router_ml.catalog import Catalog
from router_ml.ceiling import Reservation
from router_ml.errors import ProviderError, RequestFailed, SpendCeilingReached
from router_ml.failover import Result, Step, Verdict
from router_ml.needs import texts_of
from router_ml.reply import Reply, Tally
from router_ml.types import Attempt, Completion, Cost, Decision, Offer, Routed, Usage

_TOKENS_PER_MESSAGE = 4  # what chat templates add around each, about


@dataclass(frozen=True, slots=True)
class Query:
    """What a caller asks: ``params`` are keyword arguments of ``chat.completions.create``."""

    messages: Sequence[Mapping[str, Any]]
    params: Mapping[str, Any]
    judged_text: str
    session: str | None
    deadline_s: float


class Exchange:
    """Driven by a router: one of ``starts``, ``first`` step, then ``answered``, ``failed`` ... for each attempt, and
    ``end`` in any case.

    ``status`` is what the books say: answered, failed, or interrupted (the caller left, or the process did).
    ``in_books`` is False where a spend ceiling kept the request out of them: it has no row to finish.
    """

    def __init__(
        self,
        request_id: str,
        query: Query,
        reservations: Sequence[Reservation],
        plan_of: Callable[[Decision], Generator[Step, Result, None]],
        catalog: Catalog,
        count_tokens: Callable[[str], int],
    ) -> None:
        """``reservations``, one at least: with which the books are asked to let the request in, in this order."""
        self.request_id, self.query = request_id, query
        self.decision = reservations[0].decision
        self.attempts: list[Attempt] = []
        self.status = "interrupted"
        self.in_books = True
        self._reservations, self._plan_of = reservations, plan_of
        self._plan: Generator[Step, Result, None] | None = None
        self._catalog, self._count = catalog, count_tokens
        self._calling: tuple[Offer, datetime, float] | None = None
        self._first_content_ms: float | None = None

    def starts(self) -> Iterator[dict[str, Any]]:
        """Arguments of ``Ledger.start``, until one is let in; what is decided goes down with them."""
        for reserved in self._reservations:
            self.decision = reserved.decision
            yield {
                "request_id": self.request_id,
                "decision": reserved.decision,
                "judged_text": self.query.judged_text,
                "at": datetime.now(UTC),
                "reserve_nanousd": reserved.reserve_nanousd,
                "ceiling_nanousd": reserved.ceiling_nanousd,
            }

    def over_ceiling(self, refusal: SpendCeilingReached) -> bool:
        """Whether that is the end: nothing cheaper is left to ask for, or nobody can say what is spent."""
        self.in_books = not (self.decision is self._reservations[-1].decision or refusal.spent_usd is None)
        return not self.in_books

    def first(self) -> Step | None:
        self._plan = self._plan_of(self.decision)
        return next(self._plan, None)

    def calling(self, step: Step) -> Offer:
        """An attempt begins."""
        self._calling = (step.offer, datetime.now(UTC), time.perf_counter())
        self._first_content_ms = None
        return step.offer

    def first_content(self) -> None:
        """A stream's first content has arrived: from here on there is no other offer."""
        assert self._calling is not None
        self._first_content_ms = (time.perf_counter() - self._calling[2]) * 1_000

    def answered(self, reply: Reply) -> Completion:
        self._note(*self._priced(reply.usage, reply.text, reply), None)
        self._close(Verdict.ANSWERED, "answered")
        return Completion(self.request_id, self.decision, tuple(self.attempts), reply.text, reply.response)

    def failed(self, error: ProviderError) -> Step | None:
        """The next step, None where nothing is left to try."""
        self._note(None, Cost(None) if error.billed is None else Cost(pricing.ZERO, "unbilled"), str(error))
        assert self._plan is not None
        try:
            return self._plan.send(error)
        except StopIteration:
            self.status = "failed"
            return None

    def streamed(self, tally: Tally, error: ProviderError | None = None) -> None:
        """A stream has ended, whole or broken off by ``error``."""
        self._note(*self._priced(tally.usage, tally.said, tally), str(error) if error else None)
        self._close(error or Verdict.ANSWERED, "failed" if error else "answered")

    def left(self, tally: Tally) -> None:
        """The caller left a stream: what has arrived is billed, and says nothing of the provider. Unless all that
        matters had arrived: then it is an answer."""
        if tally.complete:
            self.streamed(tally)
            return
        self._note(*self._priced(tally.usage, tally.said, tally), "cancelled by the caller")
        self.end()

    def end(self) -> None:
        """However it ended: an attempt cut short is in the books, and the breaker's probe is free."""
        if self._calling is not None:
            self._note(None, Cost(None), "interrupted")
        if self._plan is not None:
            self._plan.close()

    def outcome(self) -> Exception:
        """What to raise when no step is left."""
        tried = "; ".join(f"{attempt.error}" for attempt in self.attempts)
        message = f"no offer answered within {self.query.deadline_s:g} s and {len(self.attempts)} attempts: {tried}"
        return RequestFailed(message, request_id=self.request_id, attempts=self.attempts)

    def refused(self) -> None:
        """The SDK itself did not take the arguments: nothing was sent."""
        self._note(None, Cost(pricing.ZERO, "unbilled"), "the SDK did not take the arguments")
        self.status = "failed"

    @property
    def routed(self) -> Routed:
        """So far; an attempt under way is the last, with neither usage nor cost yet."""
        attempts = tuple(self.attempts)
        if self._calling is not None:
            offer, started_at, clock = self._calling
            duration_ms = (time.perf_counter() - clock) * 1_000
            attempts += (Attempt(offer, started_at, duration_ms, first_content_ms=self._first_content_ms),)
        return Routed(self.request_id, self.decision, attempts)

    def _close(self, result: Result, status: str) -> None:
        assert self._plan is not None
        self.status = status
        try:
            self._plan.send(result)
        except StopIteration:
            return
        self._plan.close()

    def _note(self, usage: Usage | None, cost: Cost, error: str | None) -> None:
        assert self._calling is not None
        offer, started_at, clock = self._calling
        self._calling = None
        duration_ms = (time.perf_counter() - clock) * 1_000
        self.attempts.append(Attempt(offer, started_at, duration_ms, usage, cost, error, self._first_content_ms))

    def _priced(self, usage: Usage | None, said: str, source: Reply | Tally) -> tuple[Usage, Cost]:
        """Token counts and their cost; where the provider sent none, our own count, marked as an estimate."""
        assert self._calling is not None
        offer, started_at, _ = self._calling
        provider = self._catalog.providers[offer.provider]
        if usage is not None:
            return usage, pricing.cost(offer, provider, usage, started_at, reported_usd=source.reported_usd)
        texts = [text for message in self.query.messages for text in texts_of(message)]
        inputs = sum(self._count(text) for text in texts) + _TOKENS_PER_MESSAGE * len(self.query.messages)
        estimate = Usage(inputs, self._count(said))
        usd = pricing.cost(offer, provider, estimate, started_at).usd
        return estimate, Cost(usd, None if usd is None else "estimate")
