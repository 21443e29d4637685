import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from router_ml import (
    Catalog,
    ComplexityClassifier,
    ConfigError,
    InputError,
    Ledger,
    LedgerError,
    MissingKeyError,
    RequestFailed,
    RequestRejected,
    Router,
    Tier,
)
from router_ml.simulator import Simulator

MakeRouter = Callable[..., Router]


def test_a_prompt_is_classified_routed_answered_and_logged(make_router: MakeRouter, simulator: Simulator) -> None:
    router = make_router()
    reply = router.complete("Translate 'good morning' to French.", max_tokens=50)
    assert "simulated" in reply.text
    assert reply.response.choices[0].message.content == reply.text
    assert simulator.requests[0]["model"] == reply.model
    assert simulator.requests[0]["max_tokens"] == 50
    assert reply.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == simulator.billed_tokens[0]
    [row] = router.ledger.recent()
    assert (row["request_id"], row["status"], row["model"]) == (reply.request_id, "answered", reply.model)
    assert reply.cost_usd is not None
    assert row["cost_nanousd"] == round(reply.cost_usd * 10**9) > 0


def test_a_tier_can_be_pinned_and_more_quality_is_never_a_weaker_tier(make_router: MakeRouter) -> None:
    router = make_router()
    for tier in Tier:
        assert router.complete("hi", tier=tier.value).tier == tier
    for prompt in ("hi", "Prove that the sum of two odd squares is no square.", "plan a week in Rome"):
        tiers = [router.decide(prompt, quality=quality).tier for quality in (0.01, 0.5, 0.9, 0.99, 1.0)]
        assert tiers == sorted(tiers)
        assert tiers[0] == Tier.SIMPLE


def test_feedback_reaches_the_books_once_per_source(make_router: MakeRouter) -> None:
    router = make_router()
    request_id = router.complete("hi").request_id
    router.feedback(request_id, 0.2)
    router.feedback(request_id, 1.0)
    assert [row["score"] for row in router.ledger.judged()] == [1.0]
    for score in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="outside"):
            router.feedback(request_id, score)
    with pytest.raises(LedgerError, match="no request 'nobody'"):
        router.feedback("nobody", 1.0)


@pytest.mark.parametrize("fault", ["500", "429", "401", "402", "404", "reset", "html", "empty", "null"])
def test_the_standby_answers_and_both_attempts_are_logged(make_router: MakeRouter, fault: str) -> None:
    router = make_router({"global-api": fault})
    reply = router.complete("hi", tier="simple")
    assert [(a.offer.provider, a.answered) for a in reply.attempts] == [("global-api", False), ("deepseek", True)]
    assert router.ledger.recent()[0]["attempts"] == 2


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_rejected_request_is_not_sent_elsewhere(make_router: MakeRouter, simulator: Simulator, status: str) -> None:
    router = make_router({"global-api": status})
    with pytest.raises(RequestRejected):
        router.complete("hi")
    assert len(simulator.requests) == 1
    assert router.ledger.recent()[0]["status"] == "failed"


def test_a_silent_provider_is_left_after_the_attempt_timeout(make_router: MakeRouter) -> None:
    router = make_router({"global-api": "stall"}, attempt_timeout_s=0.2)
    reply = router.complete("hi", tier="simple")
    assert reply.provider == "deepseek"
    assert reply.attempts[0].cost.usd is None  # it may have been billed


def test_all_failing_is_one_error_with_every_attempt(make_router: MakeRouter) -> None:
    router = make_router({"global-api": "500", "deepseek": "401", "openrouter": "reset"})
    with pytest.raises(RequestFailed, match="3 attempts") as caught:
        router.complete("hi", tier="premium")
    assert [attempt.offer.provider for attempt in caught.value.attempts] == ["global-api", "deepseek", "openrouter"]
    [row] = router.ledger.recent()
    assert (row["status"], row["attempts"], row["request_id"]) == ("failed", 3, caught.value.request_id)


@pytest.mark.parametrize(
    ("prompt", "kwargs", "error"),
    [
        ("", {}, InputError),
        (None, {}, InputError),
        ([{"role": "system", "content": "x"}], {}, InputError),
        ("hi", {"tier": "huge"}, InputError),
        ("hi", {"quality": 0.0}, ConfigError),
        ("hi", {"quality": 1.01}, ConfigError),
        ("hi", {"stream": True}, InputError),
        ("hi", {"timeout": 0}, InputError),
        ("hi", {"model": "gpt-4o"}, InputError),
        ("hi", {"no_such_argument": 1}, InputError),
    ],
)
def test_bad_input_is_a_named_error_and_nothing_is_sent(
    make_router: MakeRouter, simulator: Simulator, prompt: str, kwargs: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        make_router().complete(prompt, **kwargs)
    assert simulator.requests == []


def test_hostile_text_is_sent_and_stored_sanitised(make_router: MakeRouter, simulator: Simulator) -> None:
    router = make_router()
    router.complete("a\ud800b\0c")
    assert simulator.requests[0]["messages"][0]["content"] == "a\ufffdb\0c"
    with router.ledger.database.reading() as connection:
        assert connection.execute(sa.text("select prompt from requests")).scalar() == "a\ufffdb\ufffdc"


def test_a_missing_key_names_the_variables(classifier: ComplexityClassifier, tmp_path: Path) -> None:
    with pytest.raises(MissingKeyError, match="GLOBAL_API_KEY or DEEPSEEK_API_KEY or OPENROUTER_API_KEY"):
        Router(Catalog.load(), classifier=classifier, environ={})
    ledger = Ledger(f"sqlite:///{tmp_path}/r.db")
    with Router(Catalog.load(), classifier=classifier, ledger=ledger, environ={"DEEPSEEK_API_KEY": "k"}) as router:
        assert router.decide("hi", "simple").offers[0].provider == "deepseek"


KEY = "sk-canary-0123456789"


def test_the_key_is_in_no_error_log_or_row(
    classifier: ComplexityClassifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ledger = Ledger(f"sqlite:///{tmp_path}/r.db")
    for key in (KEY, f"{KEY}\r\nX: y"):
        path = tmp_path / "router.toml"
        path.write_text(
            '[router]\nroute = ["a"]\n[providers.a]\nbase_url = "http://127.0.0.1:9/v1"\nkey_env = "A_KEY"\n'
            'models = { simple = "s", complex = "m", premium = "l" }'
        )
        router = Router(path, classifier=classifier, ledger=ledger, environ={"A_KEY": key})
        with pytest.raises((RequestFailed, ConfigError)) as caught:
            router.complete("hi", tier="simple")
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        assert KEY not in repr(caught.value)
    ledger.close()
    assert KEY not in caplog.text
    assert KEY.encode() not in b"".join(file.read_bytes() for file in tmp_path.glob("r.db*"))


def test_an_unwritable_database_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(f"sqlite:///{tmp_path}/no/such/folder/r.db")
    with pytest.raises(LedgerError, match="no SQLAlchemy URL"):
        Ledger("router.db")


def test_a_paid_answer_survives_a_failing_ledger_and_is_written_later(make_router: MakeRouter, tmp_path: Path) -> None:
    router = make_router()
    router.complete("first")
    blocker = sqlite3.connect(tmp_path / "router.db", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    assert router.complete("second").text
    blocker.execute("ROLLBACK")
    blocker.close()
    router.complete("third")
    router.close()
    assert [row["status"] for row in Ledger(f"sqlite:///{tmp_path}/router.db").recent()] == ["answered"] * 3


@pytest.mark.parametrize(
    ("kept", "prompt", "hashed"), [("full", "hi", True), ("hash", None, True), ("off", None, False)]
)
def test_what_is_kept_of_the_text(make_router: MakeRouter, kept: str, prompt: str | None, hashed: bool) -> None:
    router = make_router()
    router.ledger.prompts = kept  # type: ignore[assignment]
    router.complete("hi")
    [row] = router.ledger.recent()
    assert (row["prompt"], row["prompt_sha256"] is not None) == (prompt, hashed)
