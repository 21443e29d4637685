"""A row per provider profile: what goes out and what comes back, through the real SDK over loopback HTTP."""

from dataclasses import replace

import pytest
from openai.types import CompletionUsage

from router_ml import Catalog, Tier
from router_ml.provider import Endpoint
from router_ml.reply import read_usage
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
