"""Rows S1 to S8 of the fault list, for Router and AsyncRouter."""

import asyncio
import time
import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from conftest import BUSY_MACHINE_S

from router_ml import ComplexityClassifier, Ledger, RequestFailed, StreamInterrupted
from router_ml.breaker import State
from router_ml.simulator import Simulator

MakeRouter = Callable[..., Any]
PRIMARY = "global-api"
EVERYONE = (PRIMARY, "deepseek", "openrouter")
KEY = "global-api/deepseek-v4-flash"


def content(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def last_attempt(router: Any) -> dict[str, Any]:
    [row] = router.ledger.recent(1)
    return dict(row)


def test_a_stream_is_the_sdks_own_chunks_and_is_logged(make_either: MakeRouter, simulator: Simulator) -> None:
    from openai.types.chat import ChatCompletionChunk

    router = make_either()
    stream = router.stream("hi", "simple", max_tokens=20)
    assert (stream.router.provider, stream.router.usage, stream.router.cost_usd) == (PRIMARY, None, None)
    chunks = list(stream)
    assert all(type(chunk) is ChatCompletionChunk for chunk in chunks)
    assert "simulated" in content(chunks) == stream.text
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert simulator.requests[0]["stream_options"] == {"include_usage": True}
    usage, row = stream.router.usage, last_attempt(router)
    assert (usage.input_tokens, usage.output_tokens) == simulator.billed_tokens[0]
    assert (row["status"], row["input_tokens"], row["output_tokens"]) == ("answered", *simulator.billed_tokens[0])
    assert stream.router.attempts[0].cost.source == "offer"
    assert 0 < stream.router.attempts[0].first_content_ms < stream.router.attempts[0].duration_ms


def test_the_usage_chunk_is_shown_to_those_who_asked_for_it(make_either: MakeRouter) -> None:
    router = make_either()
    asked = list(router.stream("hi", "simple", stream_options={"include_usage": True}))
    assert asked[-1].choices == []
    assert asked[-1].usage.completion_tokens > 0
    assert all(chunk.choices for chunk in router.stream("hi", "simple"))


def test_several_choices_and_tool_calls_stream(make_either: MakeRouter) -> None:
    router = make_either()
    chunks = list(router.stream("hi", "simple", n=2))
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    chunks = list(router.stream("hi", "simple", tools=tools))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert router.ledger.recent()[0]["status"] == "answered"


BEFORE = [
    "500",
    "reset",
    "html",
    "empty",
    "truncated",
    "null",
    "cut:0",
    "stall:0",
    "error:0",
    "garbage:0",
    "unfinished:0",
]


@pytest.mark.parametrize("fault", [*BEFORE, "keepalive", "keepalive:0", "blank:0"])
def test_s1_a_fault_before_the_first_content_is_answered_by_the_standby_alone(
    make_either: MakeRouter, fault: str
) -> None:
    router = make_either({PRIMARY: fault}, attempt_timeout_s=0.3)
    stream = router.stream("hi", "simple")
    chunks = list(stream)
    assert [a.offer.provider for a in stream.router.attempts] == [PRIMARY, "deepseek"]
    assert sum(chunk.choices[0].delta.role == "assistant" for chunk in chunks) == 1
    assert sum(chunk.choices[0].finish_reason is not None for chunk in chunks) == 1
    assert "!" not in content(chunks)


@pytest.mark.parametrize("tokens", [1, 12])
@pytest.mark.parametrize("fault", ["cut", "error", "garbage", "unfinished", "stall", "keepalive", "blank"])
def test_s2_s3_s4_what_breaks_off_is_a_typed_interruption_with_what_arrived(
    make_either: MakeRouter, simulator: Simulator, fault: str, tokens: int
) -> None:
    router = make_either({PRIMARY: f"{fault}:{tokens}"}, stream_idle_s=0.2)
    stream, seen = router.stream("hi", "simple"), list[Any]()
    started = time.monotonic()
    with pytest.raises(StreamInterrupted) as caught:
        seen.extend(stream)
    assert time.monotonic() - started < 0.2 + BUSY_MACHINE_S
    assert caught.value.text == content(seen) == stream.text
    assert len(content(seen).split()) == tokens
    assert len(simulator.requests) == 1  # nobody else was asked to go on
    row = last_attempt(router)
    assert (row["status"], row["attempts"]) == ("failed", 1)
    assert row["cost_nanousd"] > 0
    assert stream.router.attempts[0].cost.source == "estimate"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize("tokens", [1, 20, 40])
def test_s2_the_estimate_of_a_cut_stream_is_near_what_was_billed(
    make_either: MakeRouter, simulator: Simulator, classifier: ComplexityClassifier, tokens: int
) -> None:
    simulator._output_tokens, simulator._count = 60, classifier.encoder.tokenizer.count  # type: ignore[attr-defined]
    router = make_either({PRIMARY: f"cut:{tokens}"})
    with pytest.raises(StreamInterrupted):
        list(stream := router.stream("Why is the sky blue? " * 20, "simple"))
    usage, (inputs, outputs) = stream.router.usage, simulator.billed_tokens[0]
    assert abs(usage.output_tokens - outputs) <= 1
    assert inputs * 0.8 < usage.input_tokens < inputs * 1.2


def test_without_reported_usage_a_whole_streams_cost_is_an_estimate(make_either: MakeRouter) -> None:
    from dataclasses import replace

    from router_ml import Catalog

    catalog = Catalog.load()
    silent = {name: replace(p, stream_usage="unsupported") for name, p in catalog.providers.items()}
    router = make_either(catalog=replace(catalog, providers=silent))
    list(stream := router.stream("hi", "simple"))
    assert stream.router.attempts[0].cost.source == "estimate"
    assert stream.router.cost_usd > Decimal(0)


def test_a_cut_after_the_finish_reason_is_a_normal_end(make_either: MakeRouter, simulator: Simulator) -> None:
    router = make_either()
    stream = router.stream("hi", "simple")
    for chunk in stream:
        if chunk.choices[0].finish_reason:
            break
    stream.close()
    assert last_attempt(router)["status"] == "answered"


def test_s6_closing_a_stream_closes_upstream_and_logs_what_arrived(
    make_either: MakeRouter, simulator: Simulator
) -> None:
    simulator._token_s = 0.01
    simulator._output_tokens = 500
    router = make_either()
    stream = router.stream("hi", "simple")
    seen = [next(stream) for _ in range(5)]
    closed_at_s = time.monotonic()
    stream.close()
    while not simulator.abandoned_at_s:
        assert time.monotonic() - closed_at_s < 1.0
        time.sleep(0.01)
    row = last_attempt(router)
    assert row["status"] == "interrupted"
    assert row["cost_nanousd"] > 0
    assert stream.text == content(seen)
    assert list(stream) == []


def test_s6_a_cancelled_task_closes_upstream(make_router: MakeRouter, simulator: Simulator) -> None:
    simulator._token_s, simulator._output_tokens = 0.01, 500
    driven = make_router(kind="async")

    async def read_a_while() -> None:
        stream = await driven.router.stream("hi", "simple")
        async with asyncio.timeout(0.1):
            async for _ in stream:
                pass

    with pytest.raises(TimeoutError):
        driven.run(read_a_while())
    deadline_s = time.monotonic() + 1.0
    while not simulator.abandoned_at_s:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    row = last_attempt(driven)
    assert row["status"] == "interrupted"
    assert row["cost_nanousd"] > 0


def test_s6_a_hundred_cancels_leave_the_breaker_closed(make_either: MakeRouter, simulator: Simulator) -> None:
    simulator._token_s = 0.001
    router = make_either()
    for _ in range(100):
        router.stream("hi", "simple").close()
    assert router.breaker.state(KEY) is State.CLOSED
    assert not router.breaker._circuits[KEY].calls
    assert {row["status"] for row in router.ledger.recent(200)} == {"interrupted"}


def test_a_dropped_stream_is_accounted_for(make_router: MakeRouter) -> None:
    router = make_router()
    router.stream("hi", "simple")
    assert last_attempt(router)["status"] == "interrupted"


def test_the_deadline_of_a_stream_is_that_of_its_first_content(make_either: MakeRouter, simulator: Simulator) -> None:
    simulator._token_s, simulator._count = 0.25, lambda text: 5 * len(text)  # one sentence: few tokens, slowly
    stream = make_either().stream("hi", "simple", timeout=0.2, stop="answer")
    assert stream.text == "This"
    assert content(list(stream)) == "This is a simulated "


def test_s7_all_failing_before_the_first_token_is_the_error(make_either: MakeRouter) -> None:
    router = make_either(dict.fromkeys(EVERYONE, "unfinished:0"))
    with pytest.raises(RequestFailed, match="3 attempts"):
        router.stream("hi", "premium")
    assert last_attempt(router)["status"] == "failed"


def test_s8_50_slow_readers_take_less_than_64_mb(make_router: MakeRouter, simulator: Simulator) -> None:
    simulator._output_tokens = 4_000  # about 1 MB of events each
    driven = make_router(kind="async")

    async def read_slowly() -> int:
        streams = [await driven.router.stream("hi", "simple") for _ in range(50)]
        for _ in range(5):
            for stream in streams:
                await anext(stream)
            await asyncio.sleep(0.02)
        peak = tracemalloc.get_traced_memory()[1]
        for stream in streams:
            await stream.close()
        return peak

    tracemalloc.start()
    peak_bytes = driven.run(read_slowly())
    tracemalloc.stop()
    assert peak_bytes < 64 * 1024 * 1024


def test_a_ledger_that_cannot_be_reached_does_not_stop_a_stream(make_either: MakeRouter, tmp_path: Any) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/other.db")
    router = make_either(ledger=ledger)
    with ledger.database.writing() as connection:
        connection.exec_driver_sql("drop table attempts")
    assert list(router.stream("hi", "simple"))


def test_how_long_the_first_content_took_is_in_the_ledger(make_either: MakeRouter, simulator: Simulator) -> None:
    router = make_either()
    simulator._token_s = 0.01
    list(router.stream("hi", "simple"))
    router.complete("hi", "simple")
    whole, streamed = router.ledger.recent()
    assert streamed["first_content_ms"] > 0
    assert whole["first_content_ms"] is None
