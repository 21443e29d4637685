import json
from dataclasses import replace

import numpy as np
import pytest

from router_ml import Catalog, ComplexityClassifier, Tier
from router_ml.cli import main
from router_ml.decider import Decider
from router_ml.explain import expected_rank, explain
from router_ml.needs import Needs
from training.robustness import typos

PROMPT = "Prove that every finite division ring is commutative, thanks a lot"


def test_an_influence_is_exactly_what_the_phrase_adds(classifier: ComplexityClassifier) -> None:
    explanation = explain(classifier, PROMPT, phrases=50)
    by_phrase = {influence.phrase: influence.added_rank for influence in explanation.influences}
    assert set(by_phrase) == set(PROMPT.split())
    whole, without = expected_rank(classifier.predict_success([PROMPT, PROMPT.replace("commutative,", " ")]))
    assert by_phrase["commutative,"] == pytest.approx(whole - without, abs=1e-6)  # single precision


def test_a_labelled_prompt_is_its_own_nearest(classifier: ComplexityClassifier) -> None:
    nearest = explain(classifier, PROMPT, neighbours=1).neighbours[0]
    again = explain(classifier, nearest.text, neighbours=1).neighbours[0]
    assert (again.text, again.tier) == (nearest.text, nearest.tier)
    assert again.similarity == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("text", ["", "x", "word " * 5_000])
def test_any_text_is_explained(classifier: ComplexityClassifier, text: str) -> None:
    assert len(explain(classifier, text).influences) <= 8


def test_the_command_says_what_would_change_the_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--json", PROMPT]) == 0
    said = json.loads(capsys.readouterr().out)
    tiers = [Tier(tier) for tier in said["tier_by_quality"].values()]
    assert tiers == sorted(tiers, key=lambda tier: tier.rank)
    assert said["tier_by_quality"]["0.95"] == said["tier"]
    assert main(["explain", PROMPT]) == 0
    assert "nearest labelled prompts" in capsys.readouterr().out


def test_a_dearer_tier_is_left_and_an_unfamiliar_prompt_goes_up(classifier: ComplexityClassifier) -> None:
    catalog = Catalog.load()
    keys = {provider.key_env: "k" for provider in catalog.providers.values() if provider.key_env}
    decider = Decider(catalog, classifier, keys)
    needs, said = Needs(10.0), classifier.classify("Write a short poem about rain")
    now = decider.tier_at(said, needs, 0.95)
    assert now == decider.decide("Write a short poem about rain", needs, 0.95).tier
    assert decider.tier_at(said, needs, 0.95, {Tier.PREMIUM: 1e4, Tier.COMPLEX: 1e4}) == Tier.SIMPLE
    cautious = Decider(replace(catalog, settings=replace(catalog.settings, step_up_below=1.1)), classifier, keys)
    plain, careful = (d.decide("thanks!", needs, 0.9) for d in (decider, cautious))
    assert (plain.tier, careful.tier) == (Tier.SIMPLE, Tier.COMPLEX)
    assert "one tier up" in careful.reason


def test_what_is_unlike_the_training_data_is_known_to_be(classifier: ComplexityClassifier) -> None:
    strange = ["a " * 400, "!!!! ???? ;;;; ,,,, ....", "🙂🙂🙂🙂👍👍"]
    assert all(classifier.classify(text).familiarity < 0.05 for text in strange)
    usual = "Write a SQL query that lists the ten customers with the highest revenue"
    assert classifier.classify(usual).familiarity > 0.05


def test_a_typo_swaps_two_letters_and_nothing_else() -> None:
    text = "Please describe the difference"
    changed = typos(text, np.random.default_rng(0))
    assert changed != text
    assert sorted(changed) == sorted(text)
    assert [len(word) for word in changed.split()] == [len(word) for word in text.split()]
