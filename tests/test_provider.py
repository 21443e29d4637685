"""A row per provider profile: what goes out and what comes back, through the real SDK over loopback HTTP."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from router_ml import Catalog, ProviderUnavailable, RequestRejected, Tier
from router_ml.provider import Endpoint
from router_ml.reply import Tally, read, read_usage
from router_ml.simulator import Simulator

CATALOG = Catalog.load()
PARAMS = {
    "max_tokens": 9,
    "temperature": 1.5,
    "seed": 4,
    "n": 1,
    "user": "u",
    "metadata": {"a": "b"},
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
}
MESSAGES = [{"role": "user", "content": "hi", "name": "ann"}]
ALL = {"max_tokens", "temperature", "seed", "n", "user", "metadata", "tool_choice", "tools", "model", "messages"}
EXPECTED = {
    "anthropic": ALL - {"seed", "n", "user", "metadata"},
    "cohere": ALL - {"n", "user", "metadata"},
    "deepseek": ALL | {"thinking"},
    "fireworks": ALL,
    "global-api": ALL,
    "google": ALL - {"user", "metadata"},
    "groq": ALL - {"n", "user", "metadata"},
    "llama-cpp": ALL,
    "lm-studio": ALL,
    "mistral": ALL - {"seed", "n", "user", "metadata"} | {"random_seed"},
    "ollama": ALL,
    "openai": ALL - {"max_tokens"} | {"max_completion_tokens"},
    "openrouter": ALL | {"usage"},
    "together": ALL,
    "vllm": ALL,
}


def test_every_provider_has_a_row() -> None:
    assert set(EXPECTED) == set(CATALOG.providers)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_profile(name: str, simulator: Simulator) -> None:
    provider = CATALOG.providers[name]
    offer = next(o for o in CATALOG.offers if (o.provider, o.tier) == (name, Tier.SIMPLE))
    endpoint = Endpoint(replace(provider, base_url=simulator.base_url), "key")
    reply = endpoint.complete(offer, MESSAGES, PARAMS, timeout_s=5)
    endpoint.close()
    [sent] = simulator.requests
    assert set(sent) == EXPECTED[name]
    assert sent["model"] == offer.model
    assert ("name" in sent["messages"][0]) == (name not in ("groq", "mistral"))
    assert sent["temperature"] == (1.0 if name == "anthropic" else 1.5)
    assert sent["tool_choice"] == ("any" if name == "mistral" else "required")
    assert reply.response.choices[0].finish_reason == "tool_calls"
    assert reply.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == simulator.billed_tokens[0]


def test_usage_is_read_in_one_form() -> None:
    gemini = CompletionUsage(prompt_tokens=10, completion_tokens=5, total_tokens=40)
    deepseek = CompletionUsage.model_validate(
        {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "prompt_cache_hit_tokens": 8}
    )
    assert (read_usage(gemini).output_tokens, read_usage(gemini).reasoning_tokens) == (30, 25)
    assert read_usage(deepseek).cached_input_tokens == 8


def chunk(**fields: Any) -> ChatCompletionChunk:
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}
    return ChatCompletionChunk.model_validate(head | fields)


def test_groqs_stream_usage_is_read_where_it_stands() -> None:
    tally = Tally("p/m")
    tally.add(chunk(x_groq={"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}))
    assert tally.usage is not None
    assert (tally.usage.input_tokens, tally.usage.output_tokens) == (3, 4)


def test_a_choice_that_ends_in_an_error_is_a_failure() -> None:
    broken = {"index": 0, "finish_reason": "error", "message": {"role": "assistant", "content": "half"}}
    with pytest.raises(ProviderUnavailable, match="an error in a 200 reply"):
        read(ChatCompletion.construct(id="x", choices=[broken]), "p/m")
    event = ChatCompletionChunk.construct(choices=[{"index": 0, "delta": {}, "finish_reason": "error"}])
    with pytest.raises(ProviderUnavailable, match="an error in its stream"):
        Tally("p/m").add(event)


def test_an_optional_parameter_that_is_refused_by_name_is_left_out_once(
    make_either: Callable[..., Any], simulator: Simulator, caplog: pytest.LogCaptureFixture
) -> None:
    router = make_either({"global-api": "unsupported:seed"})
    reply = router.complete("hi", "simple", seed=3, temperature=0.5)
    assert reply.provider == "global-api"
    assert [("seed" in body, body["temperature"]) for body in simulator.requests] == [(True, 0.5), (False, 0.5)]
    router.complete("hi", "simple", seed=3)
    assert sum("seed" in record.getMessage() for record in caplog.records) == 1


def test_a_required_parameter_that_is_refused_is_not_left_out(
    make_either: Callable[..., Any], simulator: Simulator
) -> None:
    with pytest.raises(RequestRejected):
        make_either({"global-api": "unsupported:messages"}).complete("hi", "simple")
    assert len(simulator.requests) == 1
