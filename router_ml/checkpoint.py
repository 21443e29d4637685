"""SQLite's write-ahead log, moved into its file in the background.

Left to SQLite, every so many pages a commit does it in passing and waits for two disk flushes: 5 to 20 ms for one
request in a hundred. Here a thread does it beside the commits, which go on meanwhile.
"""

from __future__ import annotations

import logging
import threading

import sqlalchemy as sa

from router_ml.statements import reason

_EVERY_COMMITS = 2_000  # some 32 MB of log
_log = logging.getLogger(__name__)


class Checkpointer:
    """``committed`` is called under the group commit's lock; a thread exists only once there is something to do."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._commits = 0
        self._due = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def committed(self) -> None:
        self._commits += 1
        if self._commits % _EVERY_COMMITS == 0:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ledger-checkpoint", daemon=True)
                self._thread.start()
            self._due.set()

    def close(self) -> None:
        """Under the same lock. What is left in the log is moved by the last connection that closes."""
        if self._thread is not None:
            self._closing = True
            self._due.set()
            self._thread.join()
            self._thread, self._closing = None, False
            self._due.clear()

    def _run(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            if self._closing:
                return
            try:
                with self._engine.connect() as connection:
                    driver = (
                        connection.connection.driver_connection
                    )  # outside a transaction, where SQLAlchemy is in one
                    assert driver is not None
                    driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            except (self._engine.dialect.loaded_dbapi.Error, sa.exc.SQLAlchemyError) as exc:
                _log.warning("the ledger's log cannot be checkpointed (%s): it grows until it can", reason(exc))
