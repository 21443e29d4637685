"""Rows F1 to F11 and M7 of the fault list, for Router and AsyncRouter: what a bad provider does, and who answers.

After every test: one finished ledger row for each accepted request, the logged tokens are those the fake billed, and
the key is nowhere.
"""

import logging
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from conftest import BUSY_MACHINE_S

from router_ml import Complexity, ComplexityClassifier, RequestFailed, RequestRejected, Tier
from router_ml.breaker import State
from router_ml.faults import _packed_blanks
from router_ml.schema import ATTEMPTS, REQUESTS
from router_ml.simulator import Simulator

MakeRouter = Callable[..., Any]
PRIMARY, STANDBYS = "global-api", ("deepseek", "openrouter")
EVERYONE = (PRIMARY, *STANDBYS)
KEY = "global-api/deepseek-v4-flash"


@pytest.fixture(autouse=True)
def _books(tmp_path: Path, simulator: Simulator, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    if not (tmp_path / "router.db").exists():
        return
    engine = sa.create_engine(f"sqlite:///{tmp_path}/router.db")
    with engine.connect() as connection:
        statuses = connection.execute(sa.select(REQUESTS.c.status)).scalars().all()
        answered = connection.execute(
            sa.select(ATTEMPTS.c.input_tokens, ATTEMPTS.c.output_tokens).where(ATTEMPTS.c.error.is_(None))
        ).all()
    engine.dispose()
    assert "started" not in statuses
    billed = list(simulator.billed_tokens)
    for tokens in answered:
        billed.remove(tuple(tokens))


def answered_by_standby(router: Any) -> Any:
    reply = router.complete("hi", "simple")
    assert [(a.offer.provider, a.answered) for a in reply.attempts] == [(PRIMARY, False), ("deepseek", True)]
    assert router.ledger.recent()[0]["attempts"] == 2
    return reply


@pytest.mark.parametrize("status", ["408", "409", "424", "429", "500", "502", "503", "529"])
def test_f1_a_failing_primary_is_answered_by_the_standby(
    make_either: MakeRouter, simulator: Simulator, status: str
) -> None:
    answered_by_standby(make_either({PRIMARY: status}))
    assert len(simulator.requests) == 2


@pytest.mark.parametrize("asked", ["0", "1", "300", "-1", "NaN", "1e9", formatdate(0), formatdate(4e9), "soon"])
def test_f2_retry_after_is_never_waited_past_the_deadline(make_either: MakeRouter, asked: str) -> None:
    router = make_either(dict.fromkeys(EVERYONE, f"429:{asked}"), deadline_s=0.5, max_attempts=9)
    started = time.monotonic()
    with pytest.raises(RequestFailed):
        router.complete("hi", "premium")
    assert time.monotonic() - started < 0.5 + BUSY_MACHINE_S


def test_f2_retry_after_within_the_deadline_is_waited(make_either: MakeRouter, simulator: Simulator) -> None:
    router = make_either({PRIMARY: "429:0.3%50"}, route=(PRIMARY,))
    model = router.decide("hi", "premium").offers[0].model
    simulator._seen[model] = 1  # so that the next request is hit and the one after it is not
    started = time.monotonic()
    assert [a.answered for a in router.complete("hi", "premium").attempts] == [False, True]
    assert time.monotonic() - started > 0.3


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_f3_a_rejected_request_goes_nowhere_else_and_leaves_the_breaker(
    make_either: MakeRouter, simulator: Simulator, status: str
) -> None:
    router = make_either({PRIMARY: status})
    for _ in range(10):
        with pytest.raises(RequestRejected) as caught:
            router.complete("hi", "simple")
        assert caught.value.__cause__ is caught.value.__context__ is None  # the SDK's own holds the key
    assert len(simulator.requests) == 10
    assert router.breaker.state(f"{KEY}!{status}") is State.CLOSED
    assert {row["status"] for row in router.ledger.recent()} == {"failed"}


@pytest.mark.parametrize(("status", "says"), [("401", "key"), ("402", "balance"), ("403", "key")])
def test_f4_a_refused_account_fails_over_at_once_and_warns(
    make_either: MakeRouter, caplog: pytest.LogCaptureFixture, status: str, says: str
) -> None:
    answered_by_standby(make_either({PRIMARY: status}))
    assert any(f"answered {status}" in r.getMessage() and says in r.getMessage() for r in caplog.records)


@pytest.fixture
def no_tls() -> Iterator[str]:
    """Address of a server that does not speak TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.sendall(b"no tls here\r\n")
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"https://127.0.0.1:{server.getsockname()[1]}/v1"
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("phase", ["refused", "dns", "tls"])
def test_f5_no_connection_costs_nothing(make_either: MakeRouter, no_tls: str, phase: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        url = {"refused": refused, "dns": "http://nowhere.invalid/v1", "tls": no_tls}[phase]
        reply = answered_by_standby(make_either(urls={PRIMARY: url}))
    assert reply.attempts[0].cost.usd == 0


@pytest.mark.parametrize("fault", ["reset", "reset-head", "reset-body"])
def test_f5_a_reset_at_each_phase_is_answered_by_the_standby(make_either: MakeRouter, fault: str) -> None:
    reply = answered_by_standby(make_either({PRIMARY: fault}))
    assert reply.attempts[0].cost.usd is None  # the work may have been done


SLOW = ["stall", "stall-head", "stall-body", "slow:0.03", "keepalive"]


@pytest.mark.parametrize("fault", SLOW)
def test_f6_f7_silence_slow_bytes_and_keepalives_are_cut_at_the_attempt_timeout(
    make_either: MakeRouter, fault: str
) -> None:
    reply = answered_by_standby(make_either({PRIMARY: fault}, attempt_timeout_s=0.3))
    assert 300 <= reply.attempts[0].duration_ms < 300 + BUSY_MACHINE_S * 1_000
    assert reply.attempts[0].cost.usd is None


@pytest.mark.parametrize("fault", SLOW)
def test_f6_f7_and_at_the_total_deadline(make_either: MakeRouter, fault: str) -> None:
    router = make_either(dict.fromkeys(EVERYONE, fault), attempt_timeout_s=0.7)
    started = time.monotonic()
    with pytest.raises(RequestFailed):
        router.complete("hi", "premium", timeout=0.8)
    assert 0.8 <= time.monotonic() - started < 0.8 + BUSY_MACHINE_S


@pytest.mark.slow
@pytest.mark.parametrize("fault", SLOW)
def test_f6_f7_within_a_tenth(make_either: MakeRouter, fault: str) -> None:
    router = make_either(dict.fromkeys(EVERYONE, fault), attempt_timeout_s=1.5)
    started = time.monotonic()
    with pytest.raises(RequestFailed):
        router.complete("hi", "premium", timeout=2.0)
    assert 2.0 <= time.monotonic() - started < 2.2


NO_ANSWERS = [
    "html",
    "empty",
    "truncated",
    "garbage",
    "list",
    "null",
    "error",
    "absurd:-1",
    "absurd:1000000000000",
    'absurd:"many"',
]


@pytest.mark.parametrize("fault", [*NO_ANSWERS, "absurd:1.5", "absurd:NaN", "huge"])
def test_f8_what_is_no_answer_is_a_failure(make_either: MakeRouter, fault: str) -> None:
    answered_by_standby(make_either({PRIMARY: fault}))


def test_f8_a_gzip_bomb_costs_less_than_64_mb(make_either: MakeRouter) -> None:
    router = make_either({PRIMARY: "bomb"})
    router.complete("warm up", "premium", model=None)
    _packed_blanks()
    tracemalloc.start()
    router.breaker._circuits.clear()
    answered_by_standby(router)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 64 * 1024 * 1024


def test_f9_all_down_is_one_error_that_lists_every_attempt(make_either: MakeRouter) -> None:
    router = make_either({PRIMARY: "500", "deepseek": "reset", "openrouter": "html"})
    with pytest.raises(RequestFailed, match="3 attempts") as caught:
        router.complete("hi", "premium")
    assert [a.offer.provider for a in caught.value.attempts] == list(EVERYONE)
    assert all(str(a.error) in str(caught.value) for a in caught.value.attempts)
    assert router.ledger.recent()[0]["request_id"] == caught.value.request_id
    assert caught.value.__cause__ is caught.value.__context__ is None


def check_f10(router: Any, simulator: Simulator, requests: int) -> None:
    for _ in range(requests):
        router.complete("hi", "simple")
    assert len(simulator.requests) <= 1.1 * requests  # by failing over at 1 and 10 %, by the breaker at 50 and 100 %
    assert {row["status"] for row in router.ledger.recent(requests)} == {"answered"}


@pytest.mark.parametrize("percent", [1, 10, 50, 100])
def test_f10_a_primary_failing_now_and_then_never_shows(
    make_either: MakeRouter, simulator: Simulator, percent: int
) -> None:
    check_f10(make_either({PRIMARY: f"500%{percent}"}), simulator, 100)


@pytest.mark.slow
@pytest.mark.parametrize("percent", [1, 10, 50, 100])
def test_f10_over_1000_requests(make_either: MakeRouter, simulator: Simulator, percent: int) -> None:
    check_f10(make_either({PRIMARY: f"500%{percent}"}), simulator, 1_000)


def test_a_kept_connection_that_the_provider_closed_is_not_used_again(
    make_either: MakeRouter, simulator: Simulator
) -> None:
    router = make_either()
    router.complete("hi", "simple")
    for task in list(simulator._open):
        simulator._loop.call_soon_threadsafe(task.cancel)
    time.sleep(0.1)
    assert [a.answered for a in router.complete("hi", "simple").attempts] == [True]


def test_f11_a_reset_after_the_work_was_done_is_possibly_billed_and_not_free(make_either: MakeRouter) -> None:
    router = make_either(dict.fromkeys(EVERYONE, "reset-billed"))
    with pytest.raises(RequestFailed):
        router.complete("hi", "premium")
    with router.ledger.database.reading() as connection:
        assert connection.execute(sa.select(ATTEMPTS.c.cost_nanousd)).scalars().all() == [None] * 3
        assert connection.execute(sa.select(REQUESTS.c.cost_nanousd)).scalars().all() == [None]


class BrokenClassifier:
    """Stands for a damaged artefact or a foreign encoder."""

    def __init__(self, real: ComplexityClassifier, success: float | None) -> None:
        self.calibration, self.encoder, self._success = real.calibration, real.encoder, success

    def classify(self, prompt: object) -> Complexity:
        if self._success is None:
            raise ZeroDivisionError("broken")
        return Complexity(dict.fromkeys(Tier, self._success), "broken")


@pytest.mark.parametrize("success", [None, float("nan")])
def test_m7_where_the_classifier_fails_the_fallback_tier_serves_and_says_so(
    make_either: MakeRouter, classifier: ComplexityClassifier, success: float | None
) -> None:
    router = make_either(classifier=BrokenClassifier(classifier, success))
    reply = router.complete("hi")
    assert reply.tier == Tier.PREMIUM
    assert "classifier failed" in reply.decision.reason
    assert router.ledger.recent()[0]["reason"] == reply.decision.reason


@pytest.mark.parametrize("fault", ["500", "reset", "html", "stall-body", "bomb", "keepalive"])
def test_no_descriptor_is_leaked(make_either: MakeRouter, fault: str) -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("no /proc")
    timeout_s = 0.2 if fault in SLOW else 10.0
    router = make_either(
        {PRIMARY: fault}, attempt_timeout_s=timeout_s, breaker_failures=1_000, route=(PRIMARY, "deepseek")
    )
    router.complete("hi", "simple")
    before = len(list(folder.iterdir()))
    for _ in range(4):
        router.complete("hi", "simple")
    until_s = time.monotonic() + 2.0
    while len(list(folder.iterdir())) > before:  # the provider's side of them closes a moment later
        assert time.monotonic() < until_s
        time.sleep(0.02)
