"""Many callers, one writer: whoever holds the lock commits everything that is queued; the others find theirs done.

So a single caller has no thread hand-off, and fifty share a commit. When the database fails, entries go to the spool,
nobody waits for it again, and a thread in the background tries with growing pauses until it is back.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import deque
from collections.abc import Iterable, Sequence

from router_ml.batch import Refused
from router_ml.checkpoint import Checkpointer
from router_ml.entries import Entry, Finish, Start
from router_ml.spool import Spool
from router_ml.store import Store, StoreUnavailable

_CHUNK = 500  # entries of the spool that are committed at once
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S, _LONGEST_BUSY_PAUSE_S = 5.0, 0.2
_log = logging.getLogger(__name__)


class Ticket:
    """One entry and what became of it. ``refused`` is set where a ceiling kept a start out: a ``Refused``, or
    "unknown" where the database could not be asked."""

    __slots__ = ("done", "entry", "future", "loop", "refused")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.done = False
        self.refused: Refused | str | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.future: asyncio.Future[None] | None = None


class GroupCommit:
    """Thread-safe; usable from any running loop."""

    def __init__(
        self, store: Store, spool: Spool, name: str, *, patience_s: float, checkpointer: Checkpointer | None
    ) -> None:
        """``patience_s``: how long a caller waits for another process's lock before its row is spooled. With a
        ``checkpointer`` (SQLite) commits are so quick that an event loop makes its own where no one holds the lock."""
        self.dropped = 0
        self._store, self._spool, self._name = store, spool, name
        self._patience_s, self._checkpointer = patience_s, checkpointer
        self._inline = checkpointer is not None
        self._queue: deque[Ticket] = deque()
        self._lock = threading.Lock()
        self._threads_lock = threading.Lock()  # the other one is held for as long as a commit takes
        self._scheduled: set[asyncio.AbstractEventLoop] = set()
        self._wanted = threading.Event()
        self._flusher: threading.Thread | None = None
        self._retrier: threading.Thread | None = None
        self._closing = threading.Event()

    @property
    def waiting(self) -> int:
        """Entries in the spool."""
        return len(self._spool)

    def submit(self, ticket: Ticket) -> None:
        """Returns when the entry is committed, spooled, refused or (counted) dropped."""
        self._queue.append(ticket)
        with self._lock:
            while not ticket.done:
                self._flush(self._patience_s)

    async def submit_async(self, ticket: Ticket) -> None:
        """``submit`` for a running loop, which it never blocks for longer than a commit takes. The entry is queued
        before the first await: cancelling the caller does not lose it."""
        ticket.loop = loop = asyncio.get_running_loop()
        ticket.future = loop.create_future()
        self._queue.append(ticket)
        if not self._inline:
            self._flush_elsewhere()
        elif loop not in self._scheduled:
            self._scheduled.add(loop)  # everything that becomes ready in this turn of the loop shares the commit
            loop.call_soon(self._flush_here, loop)
        await ticket.future

    def replay(self, entries: Sequence[Entry]) -> None:
        """Commit what a dead writer left. Raises StoreUnavailable."""
        with self._lock:
            for i in range(0, len(entries), _CHUNK):
                chunk = entries[i : i + _CHUNK]
                self._count(self._store.apply(chunk, self._patience_s).dropped.values())

    def close(self) -> None:
        """Commit what waits, if the database allows; what it does not stays in the spool's file."""
        self._closing.set()
        self._wanted.set()
        for thread in (self._flusher, self._retrier):
            if thread is not None:
                thread.join()
        self._flusher = self._retrier = None
        with self._lock:
            if self._queue:
                self._flush(self._patience_s)
            try:
                while self._spool:
                    self._replay_chunk(self._patience_s)
            except StoreUnavailable as exc:
                where = f"{len(self._spool) - self._spool.only_in_memory} of them in {self._spool.path}"
                _log.error("ledger %s closed with %d rows unwritten (%s), %s", self._name, len(self._spool), exc, where)
            self._spool.close()
            if self._checkpointer is not None:
                self._checkpointer.close()
            self._store.close()
        self._closing.clear()
        self._wanted.clear()

    def _flush_here(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled.discard(loop)
        if not self._queue:
            return
        if self._spool or not self._lock.acquire(blocking=False):  # a spool is synced to disk: not on a loop
            self._flush_elsewhere()
            return
        try:
            self._flush(None)
        finally:
            self._lock.release()
        if self._queue:
            self._flush_elsewhere()

    def _flush_elsewhere(self) -> None:
        flusher = self._flusher
        if flusher is None or not flusher.is_alive():
            with self._threads_lock:
                if self._flusher is None or not self._flusher.is_alive():
                    self._flusher = threading.Thread(target=self._flush_when_wanted, name="ledger-flush", daemon=True)
                    self._flusher.start()
        self._wanted.set()

    def _flush_when_wanted(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()  # before the queue is read: what comes later sets it again
            with self._lock:
                if self._queue:
                    self._flush(self._patience_s)
            if self._closing.is_set():
                return

    def _flush(self, patience_s: float | None) -> None:
        """With the lock: settle everything queued. ``patience_s`` None: leave it queued where the database is busy
        or fails, for a caller that may wait."""
        tickets = [self._queue.popleft() for _ in range(len(self._queue))]
        try:
            if self._spool:
                self._divert(tickets)
                self._retry_later()
            elif not self._commit(tickets, patience_s):
                self._queue.extendleft(reversed(tickets))
                return
        except BaseException:
            self._queue.extendleft(reversed(tickets))  # an interrupt: the others' rows are still to be written
            raise
        _wake(tickets)

    def _commit(self, tickets: list[Ticket], patience_s: float | None) -> bool:
        try:
            applied = self._store.apply([ticket.entry for ticket in tickets], patience_s or 0.0)
        except StoreUnavailable as exc:
            if patience_s is None:
                return False
            _log.error("ledger %s cannot be written (%s): rows wait in %s", self._name, exc, self._spool.path)
            self._divert(tickets)
            self._retry_later()
            return True
        if self._checkpointer is not None:
            self._checkpointer.committed()
        for i, refused in applied.refused.items():
            tickets[i].refused = refused
        self._count(applied.dropped.values())
        return True

    def _divert(self, tickets: list[Ticket]) -> None:
        """To the spool; but a start with a ceiling is refused, since nobody can say that the ceiling holds."""
        entries: list[Entry] = []
        for ticket in tickets:
            entry = ticket.entry
            if isinstance(entry, Start) and entry.ceiling_nanousd is not None:
                ticket.refused = "unknown"
                # Should its COMMIT have come through all the same, the row must not stay open with its reservation.
                at = str(entry.row[1])
                entry = Finish(entry.request_id, "failed", at, None, 0, True, (), entry.day, entry.reserved_nanousd)
            entries.append(entry)
        dropped = self._spool.add(entries)
        if dropped:
            self._count(["the spool is full"] * dropped)

    def _count(self, reasons: Iterable[str]) -> None:
        for reason in reasons:
            self.dropped += 1
            _log.error("ledger %s: a row is dropped (%s), %d so far", self._name, reason, self.dropped)

    def _retry_later(self) -> None:
        if self._retrier is None or not self._retrier.is_alive():
            self._retrier = threading.Thread(target=self._retry, name="ledger-retry", daemon=True)
            self._retrier.start()

    def _retry(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._closing.wait(pause_s * (0.5 + random.random() / 2)):  # noqa: S311 - jitter, no secret
            with self._lock:
                try:
                    self._replay_chunk(0.0)
                    pause_s = 0.0
                except StoreUnavailable as exc:
                    self._spool.save()
                    longest_s = _LONGEST_BUSY_PAUSE_S if exc.busy else _LONGEST_PAUSE_S
                    pause_s = min(max(pause_s, _FIRST_PAUSE_S) * 2, longest_s)
                if not self._spool:
                    self._retrier = None
                    _log.warning("ledger %s is written again, nothing waits", self._name)
                    return

    def _replay_chunk(self, patience_s: float) -> None:
        entries = self._spool.first(_CHUNK)
        applied = self._store.apply(entries, patience_s)
        self._count(applied.dropped.values())
        self._spool.remove(len(entries))


def _wake(tickets: Sequence[Ticket]) -> None:
    elsewhere: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for ticket in tickets:
        ticket.done = True
        if ticket.loop is not None and ticket.future is not None:
            elsewhere.setdefault(ticket.loop, []).append(ticket.future)
    for loop, futures in elsewhere.items():
        try:
            loop.call_soon_threadsafe(_resolve, futures)
        except RuntimeError:  # the loop has closed: nobody waits there any more
            continue


def _resolve(futures: Sequence[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
