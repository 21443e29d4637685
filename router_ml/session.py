"""Pure: a conversation keeps its tier while its prompt cache is warm, and moves up when a turn clearly needs it.

Providers read a cached prefix at a fraction of the price, so leaving a model makes the next turn dearer: that cost is
weighed like any other. Time comes from an injected monotonic clock.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router_ml import policy
from router_ml.types import Offer, Tier

MAX_SESSIONS = 10_000
CLEAR_GAIN = 0.05  # of success probability: less than that is no reason to move


@dataclass(frozen=True, slots=True)
class Held:
    """The offer that answered a conversation's last turn, and the tokens its cache may hold."""

    offer: Offer
    warm_tokens: int


class Sessions:
    """The conversations of one router, each forgotten ``ttl_s`` after its last turn, the oldest first. Thread-safe."""

    def __init__(self, *, ttl_s: float, now: Callable[[], float], max_sessions: int = MAX_SESSIONS) -> None:
        self._ttl_s, self._now, self._max = ttl_s, now, max_sessions
        self._held: OrderedDict[str, tuple[float, Held]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, session: str) -> Held | None:
        with self._lock:
            kept_at, held = self._held.get(session, (0.0, None))
            return held if held is not None and self._now() - kept_at < self._ttl_s else None

    def keep(self, session: str, held: Held) -> None:
        with self._lock:
            now = self._now()
            self._held[session] = (now, held)
            self._held.move_to_end(session)
            while self._held:
                oldest_at, _ = next(iter(self._held.values()))
                if len(self._held) <= self._max and now - oldest_at < self._ttl_s:
                    return
                self._held.popitem(last=False)


def stay_or_move(
    held: Tier, success: Mapping[Tier, float], cost_usd: Mapping[Tier, float], warm_usd: float, price_weight: float
) -> tuple[Tier, str]:
    """The tier of a conversation's next turn, and why.

    ``cost_usd`` is each tier's with nothing cached; ``warm_usd`` is what the held tier's cache saves, and so the cost
    of leaving it. It only ever moves up, and only for ``CLEAR_GAIN``.
    """
    best = policy.choose(success, {**cost_usd, held: cost_usd[held] - warm_usd}, price_weight)
    if best > held and success[best] - success[held] >= CLEAR_GAIN:
        return best, f"session moves up from {held} though leaving its warm cache costs ${warm_usd:.6f}"
    return held, f"session stays at {held}: leaving its warm cache would cost ${warm_usd:.6f}"
