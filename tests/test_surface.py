"""The drop-in client: the chat-completions surface passes through, with the SDK's own types back."""

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from router_ml import InputError, MissingKeyError, Router, Tier, UnknownModel
from router_ml.simulator import Simulator

MakeRouter = Callable[..., Any]
HI = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA}}


def test_auto_routes_and_the_response_says_what_was_decided(make_either: MakeRouter) -> None:
    router = make_either()
    response = router.create(model="auto", messages=HI)
    assert type(response) is ChatCompletion
    routed = response.router
    assert routed.decision.complexity is not None
    assert (routed.model, routed.attempts[-1].answered) == (response.model, True)
    assert routed.cost_usd > 0
    [row] = router.ledger.recent()
    assert row["request_id"] == routed.request_id


def test_what_rides_on_the_response_is_in_no_dump(make_router: MakeRouter) -> None:
    response = make_router().create(messages=HI)
    assert "router" not in response.model_dump()
    assert "request_id" not in response.model_dump_json()
    assert ChatCompletion.model_validate(response.model_dump()) is not None


@pytest.mark.parametrize(
    ("model", "provider", "tier"),
    [
        ("simple", "global-api", Tier.SIMPLE),
        ("premium", "global-api", Tier.PREMIUM),
        ("deepseek/deepseek-v4-pro", "deepseek", Tier.COMPLEX),
        ("qwen-3-max", "global-api", Tier.COMPLEX),
        ("qwen/qwen3-max", "openrouter", Tier.COMPLEX),
        ("gpt-5.5", "openai", Tier.PREMIUM),
    ],
)
def test_a_tier_or_a_catalog_model_pins(make_either: MakeRouter, model: str, provider: str, tier: Tier) -> None:
    routed = make_either().create(model=model, messages=HI).router
    assert (routed.provider, routed.tier, routed.decision.policy_version) == (provider, tier, "pinned")


@pytest.mark.parametrize("model", ["gpt-9", "", "Simple", "deepseek/gpt-5.5", 5])
def test_any_other_model_is_a_named_error(make_either: MakeRouter, simulator: Simulator, model: Any) -> None:
    router = make_either()
    with pytest.raises(UnknownModel):
        router.create(model=model, messages=HI)
    assert simulator.requests == []


def test_a_near_miss_is_named(make_router: MakeRouter) -> None:
    with pytest.raises(UnknownModel, match="did you mean 'qwen-3-max'"):
        make_router().create(model="qwen3-max", messages=HI)


def test_a_pinned_model_without_key_names_the_variable(make_router: MakeRouter) -> None:
    router: Router = make_router()
    router._decider._environ = {}
    with pytest.raises(MissingKeyError, match="KEY"):
        router.complete("hi", model="gpt-5.5")


def test_tools_are_called_in_parallel_and_their_results_answered(make_either: MakeRouter) -> None:
    router = make_either()
    response = router.create(model="simple", messages=HI, tools=[tool("weather"), tool("time")])
    message = response.choices[0].message
    assert response.choices[0].finish_reason == "tool_calls"
    assert [call.function.name for call in message.tool_calls] == ["weather", "time"]
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "simulated", "days": 0}
    results = [{"role": "tool", "tool_call_id": call.id, "content": "12:00"} for call in message.tool_calls]
    answer = router.create(model="simple", messages=[*HI, message, *results], tools=[tool("weather"), tool("time")])
    assert "simulated" in answer.choices[0].message.content


def test_parallel_tool_calls_and_tool_choice_pass_through(make_either: MakeRouter) -> None:
    router, tools = make_either(), [tool("weather"), tool("time")]
    one = router.create(model="simple", messages=HI, tools=tools, parallel_tool_calls=False)
    assert len(one.choices[0].message.tool_calls) == 1
    named = {"type": "function", "function": {"name": "time"}}
    chosen = router.create(model="simple", messages=HI, tools=tools, tool_choice=named)
    assert [call.function.name for call in chosen.choices[0].message.tool_calls] == ["time"]


def test_json_of_a_schema_comes_back(make_either: MakeRouter, simulator: Simulator) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "trip", "schema": SCHEMA}}
    response = make_either().create(model="simple", messages=HI, response_format=form)
    assert json.loads(response.choices[0].message.content) == {"city": "simulated", "days": 0}
    assert simulator.requests[0]["response_format"] == form


def test_images_pass_through_to_a_model_that_may_see(make_either: MakeRouter, simulator: Simulator) -> None:
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": "data:x"}}]
    response = make_either().create(model="auto", messages=[{"role": "user", "content": parts}])
    assert response.router.provider == "openrouter"  # the others are known not to
    assert simulator.requests[0]["messages"][0]["content"] == parts


def test_n_seed_stop_logprobs_and_extra_body_pass_through(make_either: MakeRouter, simulator: Simulator) -> None:
    response = make_either().create(
        model="simple", messages=HI, n=2, seed=7, stop=["model"], logprobs=True, extra_body={"top_k": 4}, stream=False
    )
    assert [choice.index for choice in response.choices] == [0, 1]
    assert response.system_fingerprint == "seed-7"
    assert "model" not in response.choices[0].message.content
    assert response.choices[0].logprobs.content
    assert simulator.requests[0]["top_k"] == 4


def test_timeout_is_the_deadline(make_either: MakeRouter) -> None:
    router = make_either(dict.fromkeys(("global-api", "deepseek", "openrouter"), "stall"))
    for timeout in (0.2, openai.Timeout(0.2)):
        with pytest.raises(Exception, match=r"within 0\.2 s"):
            router.create(model="premium", messages=HI, timeout=timeout)
    for bad in (0, -1.0, float("nan"), "soon", True):
        with pytest.raises(InputError, match="timeout"):
            router.create(messages=HI, timeout=bad)


def test_the_sdks_not_given_is_not_given(make_either: MakeRouter, simulator: Simulator) -> None:
    make_either().create(messages=HI, temperature=openai.omit, seed=openai.NOT_GIVEN, stream=None)
    assert not {"temperature", "seed", "stream"} & set(simulator.requests[0])


def test_streams_come_as_chunks_with_the_decision(make_either: MakeRouter) -> None:
    stream = make_either().create(model="auto", messages=HI, stream=True)
    assert stream.router.decision.complexity is not None
    chunks = list(stream)
    assert "simulated" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert stream.router.request_id == stream.request_id
    assert stream.router.cost_usd > 0


def test_feedback_goes_by_the_request_id(make_router: MakeRouter) -> None:
    router = make_router()
    router.feedback(router.create(messages=HI).router.request_id, 1.0)
    driven = make_router(kind="async")
    driven.run(driven.router.feedback(driven.create(messages=HI).router.request_id, 0.5))
    assert sorted(row["score"] for row in router.ledger.judged()) == [0.5, 1.0]


def test_an_argument_that_only_the_sdk_can_refuse_is_an_input_error(make_either: MakeRouter) -> None:
    from pydantic import BaseModel

    class Trip(BaseModel):
        city: str

    router = make_either()
    with pytest.raises(InputError):
        router.create(messages=HI, response_format=Trip)
    assert router.ledger.recent()[0]["status"] == "failed"
