"""L10 of FAULTS.md: PostgreSQL's connections and answers get lost."""

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from books import DECISION, NOW, SOON, USD, attempt, counts, in_threads, new_id, wait_until, write

from router_ml.audit import verify
from router_ml.ledger import Ledger


@contextmanager
def admin(url: str) -> Iterator[Callable[[str], object]]:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        yield lambda sql: connection.execute(sql)


KILL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE pid <> pg_backend_pid() AND datname = current_database()"
)


@pytest.mark.parametrize("requests", [300, pytest.param(5_000, marks=pytest.mark.slow)])
def test_l10_killed_backends_lose_and_double_nothing(postgresql_url: str, requests: int) -> None:
    ledger = Ledger(postgresql_url)
    done: list[str] = []
    with admin(postgresql_url) as sql:
        work = [lambda: done.append(write(ledger))] * requests
        for i in range(0, requests, 50):
            work[i] = lambda: sql(KILL)
        in_threads(16, work)
    wait_until(lambda: ledger.waiting == 0)
    assert counts(ledger) == {"answered": len(done), "attempts": len(done)}
    assert ledger.spent_usd(NOW.date()) == sum((attempt().cost.usd or 0) for _ in done)
    assert ledger.dropped == 0
    ledger.close()


class CuttingProxy:
    """Forwards a TCP port to the server's unix socket; while ``cut`` is set, it lets a COMMIT through, waits for the
    server's answer and closes the connection instead of handing it on."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut = False
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._socket_path)
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65_536)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)
                    if source is client and self.cut and b"COMMIT" in data:
                        server.recv(65_536)
                        self.cuts += 1
                        return


def test_l10_commits_whose_answers_are_lost_are_not_doubled(postgresql_url: str) -> None:
    proxy = CuttingProxy(f"{postgresql_url.partition('host=')[2]}/.s.PGSQL.5432")
    ledger = Ledger(f"postgresql+psycopg://router@127.0.0.1:{proxy.port}/postgres")
    write(ledger)
    for _ in range(5):
        proxy.cut = True
        request_id = new_id()
        ledger.start(request_id, DECISION, "x", NOW, reserve_nanousd=10**9)
        ledger.finish(request_id, "answered", [attempt()], SOON)
        proxy.cut = False
        wait_until(lambda: ledger.waiting == 0)
    in_threads(16, [lambda: write(ledger)] * 100)
    assert proxy.cuts >= 5
    assert counts(ledger) == {"answered": 106, "attempts": 106}
    assert ledger.spent_usd(NOW.date()) == 106 * USD
    assert verify(ledger.database).violations == ()
    ledger.close()
    proxy.close()


def test_l10_a_server_that_is_gone_for_a_while_gets_every_row(postgresql_url: str) -> None:
    ledger = Ledger(postgresql_url)
    write(ledger)
    with admin(postgresql_url.replace("/postgres?", "/template1?")) as sql:
        sql("ALTER DATABASE postgres ALLOW_CONNECTIONS false")
        sql(KILL.replace("current_database()", "'postgres'"))
        in_threads(8, [lambda: write(ledger)] * 40)
        assert ledger.waiting == 80
        sql("ALTER DATABASE postgres ALLOW_CONNECTIONS true")
    wait_until(lambda: ledger.waiting == 0)
    assert counts(ledger) == {"answered": 41, "attempts": 41}
    ledger.close()
