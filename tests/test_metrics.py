"""Metrics against cases worked out by hand."""

import numpy as np
import pytest

from training import metrics as m

# Four prompts: the strong model adds 1, 1, 0, 0 to the weak one's 0, 0, 1, 0.
TWO = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])


def test_pgr_rises_first_where_the_score_is_right() -> None:
    share, recovered = m.pgr_curve(np.array([0.9, 0.8, 0.2, 0.1]), TWO)
    assert share.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert recovered.tolist() == [0, 0.5, 1, 1, 1]
    # trapezoids: (0 + .5) / 8 + (.5 + 1) / 8 + .25 + .25
    assert m.apgr(np.array([0.9, 0.8, 0.2, 0.1]), TWO) == pytest.approx(0.75)
    assert m.apgr(np.array([0.1, 0.2, 0.8, 0.9]), TWO) == pytest.approx(0.25)


def test_prompts_of_equal_score_are_in_no_order() -> None:
    assert m.apgr(np.zeros(4), TWO) == pytest.approx(0.5)
    assert m.apgr(np.zeros(4), TWO[::-1]) == pytest.approx(0.5)


def test_no_gap_is_no_number() -> None:
    assert np.isnan(m.apgr(np.arange(2.0), np.ones((2, 2))))


def test_cpt_is_the_smallest_share_that_reaches_the_level() -> None:
    score = np.array([0.9, 0.8, 0.2, 0.1])
    assert (m.cpt(score, TWO, 0.5), m.cpt(score, TWO, 0.8), m.cpt(-score, TWO, 0.5)) == (0.25, 0.5, 0.75)


def test_the_hull_keeps_what_no_mix_beats() -> None:
    points = np.array([[1.0, 0.2], [2.0, 0.3], [3.0, 0.8], [4.0, 0.7], [5.0, 1.0]])
    assert m.hull(points).tolist() == [[1.0, 0.2], [3.0, 0.8], [5.0, 1.0]]


def test_aiq_is_the_area_under_the_hull_by_the_range() -> None:
    points = np.array([[1.0, 0.2], [3.0, 0.8], [5.0, 1.0]])
    # (.2 + .8) / 2 * 2 + (.8 + 1) / 2 * 2 = 2.8, over a range of 4
    assert m.aiq(points, 1.0, 5.0) == pytest.approx(0.7)
    assert m.aiq(points[:2], 1.0, 5.0) == pytest.approx((1.0 + 1.6) / 4)


QUALITY = np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
COST = np.tile([1.0, 2.0, 4.0], (4, 1))


def test_the_needed_tier_is_the_cheapest_as_good_as_premium_and_simple_where_none_helps() -> None:
    assert m.needed_tier(QUALITY).tolist() == [0, 1, 2, 0]
    assert m.needed_tier(np.array([[0.5, 0.8, 0.9]]), eps=0.1).tolist() == [1]


def test_cost_save_needs_the_quality_to_be_kept() -> None:
    curve = np.array([[1.0, 0.5], [2.0, 0.96], [4.0, 1.0]])
    assert [m.cost_save(curve, 4.0, 1.0, keep) for keep in (1.0, 0.95, 0.5)] == [0.0, 0.5, 0.75]


def test_the_oracle_recovers_all_of_its_gap_and_a_constant_none() -> None:
    # The oracle: tiers 0, 1, 2, 0 cost (1 + 2 + 4 + 1) / 4 = 2 and reach .75; the constants at 2: complex, .5.
    assert m.oracle_gap((2.0, 0.75), QUALITY, COST) == pytest.approx(1.0)
    assert m.oracle_gap((2.0, 0.5), QUALITY, COST) == pytest.approx(0.0)


def test_tier_metrics() -> None:
    figures = m.tier_metrics(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0]))
    # weights (i - j)^2: observed 4; expected by chance (margins 1 1 2 and 2 1 1) / 4: 1*1+4*1 + 1*2+1*1 + 4*4+1*2 = 26
    assert figures["qwk"] == pytest.approx(1 - 4 / (26 / 4))
    assert (figures["adjacent"], figures["catastrophic"], figures["under"], figures["over"]) == (0.75, 0.25, 0.25, 0.0)
    # F1: simple 2/3, complex 1, premium 2/3
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert m.confusion(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0])) == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_constant_labels_show_nothing() -> None:
    assert m.kappa(np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64)) == 0.0


def test_probabilities_are_scored() -> None:
    probability, happened = np.array([0.2, 0.2, 0.8, 0.8]), np.array([0.0, 0.0, 1.0, 0.0])
    assert m.ece(probability, happened, bins=2) == pytest.approx(0.25)
    assert m.brier(probability, happened) == pytest.approx((0.04 + 0.04 + 0.04 + 0.64) / 4)
    # Of three pairs of one that happened and one that did not: two in order, one tied.
    assert m.auroc(probability, happened) == pytest.approx(2.5 / 3)
    assert np.isnan(m.auroc(probability, np.ones(4)))


def test_the_interval_holds_the_figure_and_repeats_itself() -> None:
    values = np.arange(100.0)
    low, high = m.bootstrap(lambda rows: float(values[rows].mean()), 100, seed=1)
    assert low < 49.5 < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.2)
    assert (low, high) == m.bootstrap(lambda rows: float(values[rows].mean()), 100, seed=1)
