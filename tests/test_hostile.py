"""Rows I1, I2 and I4 of the fault list: text that is meant to hurt."""

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from router_ml import ComplexityClassifier, InputError, ProviderUnavailable, UnknownModel
from router_ml.reply import read
from router_ml.simulator import Simulator
from router_ml.text import judged_text

MakeRouter = Callable[..., Any]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}, "b", 5, None]}]
ODD = ["\0", "\ud800", "a" + "\u0301" * 1_000_000, " \u200b", "\U0010ffff", "x" * 10_000_000, PARTS]
ODD += [[{"role": "user", "content": ""}], [{"role": "user", "content": "hi"}] * 100_000]


@pytest.mark.parametrize("prompt", ODD, ids=range(len(ODD)))
def test_i1_any_text_has_a_finite_answer(classifier: ComplexityClassifier, prompt: Any) -> None:
    assert all(0 <= p <= 1 for p in classifier.classify(prompt).success.values())


@pytest.mark.parametrize("prompt", [" ", "", [], 5, None, [5], [{"role": "user", "content": 5}], b"hi"])
def test_i1_what_is_no_prompt_is_a_named_error(make_either: MakeRouter, prompt: Any) -> None:
    with pytest.raises(InputError):
        make_either().complete(prompt)


@pytest.mark.parametrize(("size", "limit_ms"), [(8_000, 5), (10_000_000, 20)])
def test_i1_long_text_is_cut_before_any_work(classifier: ComplexityClassifier, size: int, limit_ms: float) -> None:
    times = []
    for number in range(5):
        text = (f"word{number} and another, " * (size // 19 + 1))[:size]
        started = time.perf_counter()
        classifier.classify(text)
        times.append((time.perf_counter() - started) * 1_000)
    assert min(times) < limit_ms


def test_i2_lone_surrogates_become_replacement_characters(make_either: MakeRouter, simulator: Simulator) -> None:
    parts = [{"type": "text", "text": "a\ud800"}]
    router = make_either()
    router.complete([{"role": "system", "content": "\udfff"}, {"role": "user", "content": parts}], stop=["\ud83d"])
    assert [m["content"] for m in simulator.requests[0]["messages"]] == [
        "\ufffd",
        [{"type": "text", "text": "a\ufffd"}],
    ]
    assert simulator.requests[0]["stop"] == ["\ufffd"]
    assert "\ufffd" in judged_text("a\ud800")
    assert router.ledger.recent()[0]["prompt"] == "a\ufffd"


@pytest.mark.parametrize("headers", [{"x": "\u4e2d"}, {"x": "a\r\nb: c"}, {"a\nb": "c"}])
def test_i2_a_header_that_cannot_be_sent_is_the_callers_fault_not_the_providers(
    make_either: MakeRouter, simulator: Simulator, headers: dict[str, str]
) -> None:
    router = make_either()
    with pytest.raises(InputError) as caught:
        router.complete("hi", "simple", extra_headers=headers)
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert simulator.requests == []
    assert not router.breaker._circuits["global-api/deepseek-v4-flash"].calls


FORGED = "x\r\n2026-01-01 ERROR forged \x1b[2J"


def test_i4_a_providers_error_code_cannot_forge_a_log_line() -> None:
    response = ChatCompletion.model_construct(choices=None, error={"code": FORGED, "message": FORGED})
    with pytest.raises(ProviderUnavailable) as caught:
        read(response, "p/m")
    assert str(caught.value).isprintable()


def test_i4_nothing_a_caller_passes_can_forge_a_log_line(
    make_either: MakeRouter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    router = make_either({"global-api": "401"})
    router.complete(FORGED, "simple", session=FORGED, user=FORGED)
    with pytest.raises(UnknownModel) as caught:
        router.complete("hi", model=FORGED)
    with pytest.raises(InputError) as second:
        router.complete("hi", tier=FORGED)
    lines = [*(record.getMessage() for record in caplog.records), str(caught.value), str(second.value)]
    assert all(line.isprintable() for line in lines)
    assert all("forged" not in record.getMessage() for record in caplog.records)
