"""The static encoder's parts: what is said over a whole text, over its ends, and by its phrases."""

from pathlib import Path

import numpy as np
import pytest

from router_ml.encoder import BUCKETS, ENDS, LEXICAL, StaticEncoder, pair_buckets, phrase_buckets
from router_ml.surface import FEATURES
from router_ml.types import TIERS
from training.dataset import read_labelled
from training.distill import Teacher, packaged
from training.encoder import train_encoder, unseen

TIER_COUNT = len(TIERS)


def test_pairs_and_phrases_have_a_bucket_each_and_the_order_of_tokens_counts() -> None:
    ids = np.array([5, 9, 7, 11])
    assert len(pair_buckets(ids)) == 3
    assert len(phrase_buckets(ids)) == 4  # two of three in a row, two with a gap
    assert set(pair_buckets(ids)).isdisjoint(pair_buckets(ids[::-1]))
    assert set(phrase_buckets(ids)).isdisjoint(phrase_buckets(ids[::-1]))
    assert (phrase_buckets(ids) < BUCKETS).all()
    for few in (0, 1, 2):
        assert len(phrase_buckets(ids[:few])) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> StaticEncoder:
    return _train(tmp_path_factory.mktemp("prompts"), cache)[0]


def _train(folder: Path, cache: Path) -> tuple[StaticEncoder, list[str], np.ndarray, np.ndarray]:
    lines = [
        f'{{"id": "{tier}{i}", "prompt": "{ask} number {i}", "task": "t", "language": "en", "tier": "{tier}", '
        f'"split": "train"}}\n'
        for tier, ask in (
            ("simple", "what colour is the house"),
            ("complex", "compare three plans for the house"),
            ("premium", "prove the theorem about the house"),
        )
        for i in range(20)
    ]
    (folder / "prompts.jsonl").write_text("".join(lines))
    fit, _ = read_labelled(folder / "prompts.jsonl")
    encoder, _, _, x = train_encoder(Teacher(packaged(), cache), fit, fit.stems, dimensions=8, alpha=1.5, seed=0)
    return encoder, fit.texts, x, unseen(encoder, fit, fit.stems, alpha=1.5, seed=0)


def test_the_ends_of_a_long_text_speak_for_themselves(trained: StaticEncoder) -> None:
    hard, filler = "prove the theorem about the house", " lorem" * (3 * ENDS)
    first, last = (trained.encode([text])[0] for text in (hard + filler, filler + " " + hard))
    whole_says = slice(0, TIER_COUNT)
    first_says, last_says = (slice(n * TIER_COUNT, (n + 1) * TIER_COUNT) for n in (1, 2))
    assert first[first_says][0] < last[first_says][0]  # P(simple is enough), by the first tokens
    assert last[last_says][0] < first[last_says][0]
    assert first[whole_says][0] == pytest.approx(last[whole_says][0], abs=0.2)


def test_a_short_text_is_its_own_beginning_and_end(trained: StaticEncoder) -> None:
    raw = trained.raw(["prove the theorem about the house"])[0]
    whole, first, last, _ = raw[:LEXICAL].reshape(4, TIER_COUNT)
    assert np.array_equal(whole, first)
    assert np.array_equal(whole, last)


def test_a_head_is_fitted_on_what_the_lexicon_says_of_prompts_it_has_not_seen(tmp_path: Path, cache: Path) -> None:
    encoder, texts, x, again = _train(tmp_path, cache)
    seen = encoder.encode(texts)
    assert np.allclose(x, again, atol=0.1)  # the head alone, fitted again, sees the same but for vectors in 8 bits
    assert np.array_equal(again[:, LEXICAL:], seen[:, LEXICAL:])
    assert np.abs(again[:, :LEXICAL] - seen[:, :LEXICAL]).max() > 0.2
    assert x.shape == (60, LEXICAL + FEATURES + 3 * 8)
