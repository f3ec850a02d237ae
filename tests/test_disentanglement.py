"""Disentanglement metrics: perfect codes, shuffled ones, cases by hand, and the order of latents."""

import itertools
import math

import numpy as np
import pytest
import torch

from pyrovae.evaluation.disentanglement import (
    _gap,
    _modularity,
    _one_sided,
    beta_vae_score,
    dci,
    disentanglement_scores,
    factor_vae_score,
    mig,
    modularity,
    sap,
)

# Every combination of three factors of 3, 4 and 2 values, 60 times: independent exactly.
FACTORS = np.tile(np.array([*itertools.product(range(3), range(4), range(2))]), (60, 1))
PERFECT = np.stack([-2.0 * FACTORS[:, 1], 5.0 + FACTORS[:, 2], 0.1 * FACTORS[:, 0]], 1)
SHUFFLED = np.random.default_rng(0).permutation(PERFECT)
SCORES = sorted(disentanglement_scores(PERFECT[:48], FACTORS[:48]))
ALL = {"perfect": disentanglement_scores(PERFECT, FACTORS), "shuffled": disentanglement_scores(SHUFFLED, FACTORS)}


@pytest.mark.parametrize("name", SCORES)
def test_a_code_that_is_its_factors_scores_one(name):
    assert ALL["perfect"][name] == pytest.approx(1.0, abs=1e-9)


# Two scores are accuracies of F classes, from 500 points; importances in noise are not 0.
CHANCE = {"beta_vae_score": (1 / 3, 0.085), "factor_vae_score": (1 / 3, 0.085)}


@pytest.mark.parametrize("name", [name for name in SCORES if name != "modularity"])
def test_a_shuffled_code_scores_chance(name):
    want, tolerance = CHANCE.get(name, (0.0, 0.1))
    print(ALL["shuffled"])
    assert ALL["shuffled"][name] == pytest.approx(want, abs=tolerance)


def test_the_modularity_of_noise_is_that_of_estimated_informations():
    """2 N times the information in independent classes is chi-square, of (a - 1) (b - 1) degrees of freedom."""
    generator = np.random.default_rng(3)
    degrees = np.outer([3, 1, 2], [2, 3, 1])  # values of each latent and of each factor, less one
    want = [_modularity(generator.chisquare(degrees)) for _ in range(4000)]
    got = [modularity(generator.permutation(PERFECT), FACTORS) for _ in range(60)]
    print(np.mean(got), np.mean(want))
    assert abs(np.mean(got) - np.mean(want)) < 4 * np.std(got) / math.sqrt(60)
    assert 0.3 < np.mean(want) < 0.9, "not 0, as the docstring says"


@pytest.mark.parametrize("name", SCORES)
def test_the_order_of_latents_and_of_factors_does_not_matter(name):
    """Two more latents than factors, so that a matrix read the wrong way round would show."""
    generator = np.random.default_rng(1)
    codes = np.concatenate([PERFECT + 0.3 * generator.normal(size=PERFECT.shape), generator.normal(size=(1440, 2))], 1)
    codes[:, 0] += codes[:, 2]
    of_dci = name in dci(PERFECT[:48], FACTORS[:48])._fields
    score = (lambda c, f: getattr(dci(c, f), name)) if of_dci else globals()[name]
    first = score(codes, FACTORS)
    drawn = of_dci or name in ("beta_vae_score", "factor_vae_score")
    for latents, factors in (([4, 2, 0, 3, 1], [0, 1, 2]), ([0, 1, 2, 3, 4], [2, 0, 1])):
        tolerance = 0.05 if drawn else 1e-12  # other points are drawn, other trees break ties
        assert score(codes[:, latents], FACTORS[:, factors]) == pytest.approx(first, abs=tolerance)
    assert 0.1 < first < 0.999 or name in ("beta_vae_score", "factor_vae_score")


BITS = np.tile(np.array([*itertools.product((0, 1), repeat=2)]), (200, 1))


def test_mig_by_hand():
    """v1 is in two latents, v2 in one: gaps 0 and 1. A code of both factors tells ln 2 of each: gaps 0 and 0."""
    assert mig(BITS[:, [0, 0, 1]], BITS) == pytest.approx(0.5, abs=1e-12)
    assert mig((2 * BITS[:, :1] + BITS[:, 1:]), BITS) == pytest.approx(1.0, abs=1e-12)  # the only latent has no rival
    both = np.concatenate([2 * BITS[:, :1] + BITS[:, 1:], BITS[:, :1]], 1)
    assert mig(both, BITS) == pytest.approx((0 + 1) / 2, abs=1e-12)


def test_the_gap_is_between_latents_by_hand():
    """Rows are latents: columns have gaps 0.9 - 0.2, 0.5 - 0.4 and 0.3 - 0.3."""
    scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.5, 0.3], [0.1, 0.4, 0.0]])
    assert _gap(scores) == pytest.approx((0.7 + 0.1 + 0.0) / 3)
    assert _gap(scores[:2, :1]) == pytest.approx(0.7)


def test_sap_by_hand():
    """v1 + v2 has R^2 1/2 with each, v1 itself 1 and 0: gaps 1 - 1/2 and 1/2 - 0."""
    codes = np.stack([BITS.sum(1), BITS[:, 0]], 1)
    assert sap(codes, BITS) == pytest.approx(0.5, abs=1e-12)
    # One threshold on v1 + v2 gets a class right and half of the other: balanced accuracy 3/4, half way to 1.
    assert sap(codes, BITS, categorical=[0, 1]) == pytest.approx(0.5, abs=1e-12)
    classes = FACTORS[:, [0]]
    assert sap(np.array([1.0, 9.0, 4.0])[classes], classes, categorical=[0]) == pytest.approx(1.0)
    assert sap(np.array([1.0, 9.0, 4.0])[classes], classes) < 0.5, "the values have no order"


def test_dci_by_hand():
    """R with rows (1, 0), (1/2, 1/2), (0, 0): entropies 0 and ln 2, sums 1 and 1; columns (2, 1, 0) / 3, (0, 1, 0)."""
    importance = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]])
    assert _one_sided(importance) == pytest.approx((1 + 0) / 2)
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert _one_sided(importance.T, weigh=False) == pytest.approx((1 - entropy / math.log(3) + 1) / 2)
    # A latent that is both factors, whose forests use nothing else: disentangled 0, complete 1.
    got = dci(np.concatenate([2 * BITS[:, :1] + BITS[:, 1:], np.zeros((800, 1))], 1), BITS)
    assert got == pytest.approx((0.0, 1.0, 1.0), abs=1e-9)


def test_modularity_by_hand():
    """Rows (2, 1, 0), (1, 1, 1), (0, 0, 0): 1 - 1/(4 x 2), 1 - 2/2, left out."""
    assert _modularity(np.array([[2.0, 1, 0], [1, 1, 1], [0, 0, 0]])) == pytest.approx((7 / 8 + 0) / 2)
    assert modularity(2 * BITS[:, :1] + BITS[:, 1:], BITS) == pytest.approx(0.0, abs=1e-12)
    assert modularity(BITS[:, [0, 0, 1]], BITS) == pytest.approx(1.0, abs=1e-12)


def test_factor_vae_score_by_hand():
    """Both latents are v1: whichever factor is fixed, the first of the two varies least, and one vote is right half
    of the times. With v1 and noise: v1 fixed gives latent 0, v2 fixed one of both, by which varies less."""
    assert factor_vae_score(BITS[:, [0, 0]], BITS) == pytest.approx(0.5, abs=0.05)
    assert factor_vae_score(np.concatenate([BITS, np.ones((800, 1))], 1), BITS) == 1.0, "a constant latent is left out"
    assert factor_vae_score(np.ones((800, 3)), BITS) == 0.5


def test_beta_vae_score_by_hand():
    """|z - z'| of v1 + v2 has the same distribution whichever is shared: half of the points are told."""
    assert beta_vae_score(BITS.sum(1, keepdims=True), BITS) == pytest.approx(0.5, abs=0.06)
    assert beta_vae_score(BITS[:, :1], BITS) == 1.0, "v1 alone tells: no difference where it is shared"


def test_tensors_and_arrays_are_alike():
    as_tensors = torch.tensor(PERFECT, requires_grad=True), torch.tensor(FACTORS)
    assert disentanglement_scores(*as_tensors) == ALL["perfect"]


def test_values_of_factors_need_not_be_whole_numbers():
    """Only R^2 of `sap` knows by how much values differ; a map of equal steps leaves that too."""
    scales = 0.5 + 0.1 * FACTORS  # as those of dSprites
    assert disentanglement_scores(PERFECT, scales) == pytest.approx(ALL["perfect"], abs=1e-9)
    assert disentanglement_scores(SHUFFLED, torch.tensor(scales)) == pytest.approx(ALL["shuffled"], abs=1e-9)
    assert dci(PERFECT, np.exp(scales)) == dci(PERFECT, FACTORS)
    squares = FACTORS[:, :1] ** 2
    assert sap(squares, squares) == pytest.approx(1.0), "an ordered factor keeps its values"
    assert sap(squares, FACTORS[:, :1]) < 0.95
    assert sap(squares, squares / 3, categorical=[0]) == pytest.approx(1.0)


@pytest.mark.parametrize("score", [dci, disentanglement_scores])
def test_too_few_rows_are_named(score):
    rows = np.array([[0, 0], [1, 1], [0, 1], [1, 0]])
    with pytest.raises(ValueError, match=r"same N rows, at least 4"):
        score(rows[:3], rows[:3])
    score(rows, rows)


def test_seeds_make_the_draws(untouched):
    noisy = PERFECT + np.random.default_rng(2).normal(size=PERFECT.shape)
    first, again, other = (beta_vae_score(noisy, FACTORS, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (PERFECT[:, 0], FACTORS, r"codes have shape \(1440,\) and factors \(1440, 3\); pass \(N, latents\)"),
        (PERFECT[:5], FACTORS, r"codes have shape \(5, 3\)"),
        (np.where(PERFECT > 5, np.nan, PERFECT), FACTORS, "codes are not finite"),
        (PERFECT, np.where(FACTORS > 2, np.nan, FACTORS), r"factors \[1\] are not finite; leave out rows"),
        (PERFECT, FACTORS * [1, 0, 1], r"factors \[1\] of 3 never change"),
    ],
)
def test_bad_input_is_named(codes, factors, message):
    with pytest.raises(ValueError, match=message):
        mig(codes, factors)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"categorical has \[3\], factors has columns 0 to 2"):
        sap(PERFECT, FACTORS, categorical=[3])
    with pytest.raises(ValueError, match="bins is 1"):
        mig(PERFECT, FACTORS, bins=1)


@pytest.mark.parametrize("score", [beta_vae_score, factor_vae_score, mig, sap, dci, modularity])
def test_codes_without_latents_are_refused(score):
    with pytest.raises(ValueError, match=r"codes have shape \(1440, 0\) .*pass \(N, latents\), one at least"):
        score(PERFECT[:, :0], FACTORS)


@pytest.mark.parametrize(
    ("score", "options", "error", "message"),
    [
        (beta_vae_score, {"num_points": 0}, ValueError, "num_points is 0, at least 1 is wanted"),
        (beta_vae_score, {"num_points": 2}, ValueError, "num_points is 2 for 3 factors, 10 for each are the least"),
        (factor_vae_score, {"num_points": 1}, ValueError, "num_points is 1 for 3 factors, 10 for each are the least"),
        (factor_vae_score, {"num_points": 0}, ValueError, "num_points is 0, at least 1 is wanted"),
        (factor_vae_score, {"num_points": 99.5}, TypeError, r"num_points is 99\.5, a whole number is wanted"),
        (beta_vae_score, {"num_pairs": 0}, ValueError, "num_pairs is 0, at least 1 is wanted"),
        (factor_vae_score, {"num_rows": 1}, ValueError, "num_rows is 1, a variance needs 2; pass num_rows=64, say"),
        (mig, {"bins": 2.5}, TypeError, r"bins is 2\.5, a whole number is wanted"),
        (modularity, {"bins": 0}, ValueError, "bins is 0"),
        (dci, {"num_trees": 0}, ValueError, "num_trees is 0, at least 1 is wanted"),
    ],
)
def test_numbers_of_draws_are_checked(score, options, error, message):
    with pytest.raises(error, match=message):
        score(PERFECT, FACTORS, **options)


def test_the_least_number_of_points_tells_a_perfect_code():
    assert beta_vae_score(PERFECT, FACTORS, num_points=30) == 1.0
    assert factor_vae_score(PERFECT, FACTORS, num_points=30) == 1.0


def test_codes_in_half_precision_are_those_numbers():
    """Quarters, which bfloat16 has exactly."""
    codes = torch.tensor(FACTORS) / 4
    assert mig(codes.bfloat16(), torch.tensor(FACTORS)) == mig(codes.double(), FACTORS)
