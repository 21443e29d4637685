"""Pure: which attempt comes next, given what failed and what time is left.

A generator that yields the next attempt and is sent how it ended, the way httpx writes its auth flows: whoever drives
it does the calling and the waiting, so the sync and the async router share every decision.

Every offer is tried once, in order and without waiting; then those that may recover are tried again, after the
provider's Retry-After or a jittered exponential back-off. Offers whose breaker is open are passed over, unless that
leaves none. A request that the provider refuses as such, or a stream that broke, ends it at once.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

from router_ml.breaker import Breaker, Permit
from router_ml.errors import ProviderError, ProviderUnavailable, RequestRejected
from router_ml.types import Offer

BACKOFF_S = 0.2
EXTRA_SHARE = 0.1
EXTRA_CALLS = 3.0
_MAX_SAVED = 10.0


@dataclass(frozen=True, slots=True)
class Step:
    """Wait ``delay_s``, then call ``offer``, giving it at most ``timeout_s``."""

    offer: Offer
    delay_s: float
    timeout_s: float


class Verdict(Enum):
    """How an attempt that brought a reply ended."""

    ANSWERED = auto()
    REJECTED = auto()  # the reply was judged not good enough: only a stronger tier is worth asking now


Result: TypeAlias = Verdict | ProviderError


class RetryBudget:
    """Second calls to an offer are allowed while a router's extra calls stay within 3 + 10 % of its requests.

    The first call to another offer is never refused, since somebody must answer, but it is counted. Thread-safe.
    """

    def __init__(self) -> None:
        self._left = EXTRA_CALLS
        self._lock = threading.Lock()

    def request(self) -> None:
        with self._lock:
            # Capped: a long quiet time must not pay for a storm of retries.
            self._left = min(_MAX_SAVED, self._left + EXTRA_SHARE)

    def extra_call(self, *, repeated: bool) -> bool:
        """Count a call beyond a request's first; False where it repeats an offer and nothing is left."""
        with self._lock:
            if repeated and self._left < 1.0:
                return False
            self._left = max(0.0, self._left - 1.0)
            return True


def failover(
    offers: Sequence[Offer],
    *,
    deadline_s: float,
    attempt_timeout_s: float,
    max_attempts: int,
    breaker: Breaker,
    budget: RetryBudget,
    now: Callable[[], float],
    jitter: Callable[[], float] = random.random,
) -> Generator[Step, Result, None]:
    """The attempts to make for one request: never more than ``max_attempts``, never past ``deadline_s`` from the first
    step on ``now``, a monotonic clock in seconds. Closing it (a cancelled request) frees what the breaker holds."""
    end = now() + deadline_s
    queue = deque((offer, 0.0, 0) for offer in offers)  # with the earliest time to try, and calls made before
    made = 0
    budget.request()
    while queue and made < max_attempts:
        offer, earliest, before = queue.popleft()
        left = end - now()
        delay = max(0.0, earliest - now())
        if delay >= left:
            continue
        permit = breaker.acquire(str(offer))
        if permit is None and made == 0 and not queue:
            offer = offers[0]
            permit = breaker.acquire(str(offer), force=True)
        if permit is None:
            continue
        if made > 0 and not budget.extra_call(repeated=before > 0):
            breaker.settle(permit, failed=None)
            continue
        made += 1
        result = yield from _attempt(Step(offer, delay, min(attempt_timeout_s, left - delay)), permit, breaker)
        if result is Verdict.REJECTED:
            queue = deque(item for item in queue if item[0].tier > offer.tier)
        elif not isinstance(result, ProviderUnavailable):
            return
        elif result.retryable:
            queue.append((offer, now() + _wait_s(result, before, jitter), before + 1))


def _wait_s(error: ProviderError, before: int, jitter: Callable[[], float]) -> float:
    asked = error.retry_after_s
    return asked if asked is not None and asked >= 0 else BACKOFF_S * 2**before * (0.5 + jitter() / 2)


def _attempt(step: Step, permit: Permit, breaker: Breaker) -> Generator[Step, Result, Result]:
    failed: bool | None = None
    try:
        result = yield step
        if not isinstance(result, RequestRejected):
            failed = isinstance(result, ProviderError)
        return result
    finally:
        breaker.settle(permit, failed=failed)
