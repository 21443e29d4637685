"""Pure: which attempt comes next, given what failed and what time is left.

A generator that yields the next attempt and is sent its failure, the way httpx writes its auth flows: whoever drives it
does the calling and the waiting, so a sync and an async router can share every decision.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from router_ml.errors import ProviderError, ProviderUnavailable
from router_ml.types import Offer

BACKOFF_S = 0.2


@dataclass(frozen=True, slots=True)
class Step:
    """Wait ``delay_s``, then call ``offer``, giving it at most ``timeout_s``."""

    offer: Offer
    delay_s: float
    timeout_s: float


def failover(
    offers: Sequence[Offer],
    *,
    deadline_s: float,
    attempt_timeout_s: float,
    max_attempts: int,
    now: Callable[[], float],
    jitter: Callable[[], float] = random.random,
) -> Generator[Step, ProviderError, None]:
    """The attempts to make for one request; ends when nothing more is worth trying.

    Every offer is tried once, in order and without waiting; then those that may recover are tried again, after the
    provider's Retry-After or a jittered exponential back-off. Never more than ``max_attempts``, never past
    ``deadline_s`` from the first step on ``now``, a monotonic clock in seconds. A request that the provider refuses as
    such ends it at once.
    """
    end = now() + deadline_s
    queue: list[tuple[Offer, float]] = [(offer, 0.0) for offer in offers]  # with the earliest time to try
    retries = 0
    for _ in range(max_attempts):
        left = end - now()
        if not queue or left <= 0:
            return
        offer, earliest = queue.pop(0)
        delay = max(0.0, earliest - now())
        if delay >= left:
            return
        error = yield Step(offer, delay, min(attempt_timeout_s, left - delay))
        if not isinstance(error, ProviderUnavailable):
            return
        if error.retryable:
            asked = error.retry_after_s
            wait = asked if asked is not None and asked >= 0 else BACKOFF_S * 2**retries * (0.5 + jitter() / 2)
            queue.append((offer, now() + wait))
            retries += 1
