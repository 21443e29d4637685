"""Pure: which offers are worth calling, by how their last calls went. A circuit breaker for each provider and model.

Closed: calls pass. Open: after too many failures none passes until ``cooldown_s`` is over. Half-open: one call, the
probe, passes; its success closes the breaker, its failure opens it again. Time comes from an injected monotonic clock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

WINDOW_CALLS = 20
OPENING_SHARE = 0.5


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to make one call. ``era`` tells a call of before an opening from one of after it."""

    key: str
    era: int
    probe: bool


@dataclass(slots=True)
class _Circuit:
    calls: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW_CALLS))  # True: failed
    opened_at_s: float | None = None  # None: closed; 0.0 is a time like any other
    era: int = 0
    probe: Permit | None = None


class Breaker:
    """The circuits of one router, made when first asked for. Thread-safe.

    A circuit opens when at least ``failures`` of its last ``WINDOW_CALLS`` calls failed and they are at least half.
    """

    def __init__(self, *, failures: int, cooldown_s: float, now: Callable[[], float]) -> None:
        """``now`` in seconds, monotonic. A ``cooldown_s`` of 0 lets the probe pass at once."""
        self._failures, self._cooldown_s, self._now = failures, cooldown_s, now
        self._circuits: dict[str, _Circuit] = {}
        self._lock = threading.Lock()

    def state(self, key: str) -> State:
        with self._lock:
            return self._state(self._circuit(key))

    def acquire(self, key: str, *, force: bool = False) -> Permit | None:
        """Leave to call ``key``, or None while its circuit is open or its probe is out.

        ``force`` always gives leave: for the caller who has nothing else left to try. Each permit must be settled.
        """
        with self._lock:
            circuit = self._circuit(key)
            state = self._state(circuit)
            if state is State.CLOSED:
                return Permit(key, circuit.era, probe=False)
            if state is State.HALF_OPEN and circuit.probe is None:
                circuit.probe = Permit(key, circuit.era, probe=True)
                return circuit.probe
            return Permit(key, circuit.era, probe=False) if force else None

    def settle(self, permit: Permit, *, failed: bool | None) -> None:
        """How the call ended; None where it says nothing of the provider (cancelled, or a request refused as such).

        What belongs to an earlier era is stale and changes nothing.
        """
        with self._lock:
            circuit = self._circuit(permit.key)
            if circuit.probe is permit:
                circuit.probe = None
            if failed is None or permit.era != circuit.era:
                return
            if circuit.opened_at_s is None:
                circuit.calls.append(failed)
                count = sum(circuit.calls)
                if count >= self._failures and count >= OPENING_SHARE * len(circuit.calls):
                    self._turn(circuit, self._now())
            elif not failed:  # the call began after the opening: the provider is back
                self._turn(circuit, None)
            elif permit.probe:
                self._turn(circuit, self._now())

    def _turn(self, circuit: _Circuit, opened_at_s: float | None) -> None:
        circuit.opened_at_s = opened_at_s
        circuit.era += 1
        circuit.probe = None
        circuit.calls.clear()

    def _state(self, circuit: _Circuit) -> State:
        if circuit.opened_at_s is None:
            return State.CLOSED
        return State.OPEN if self._now() - circuit.opened_at_s < self._cooldown_s else State.HALF_OPEN

    def _circuit(self, key: str) -> _Circuit:
        return self._circuits.setdefault(key, _Circuit())
