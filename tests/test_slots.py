"""Every slot with every other: each pair of prior, posterior and likelihood occurs in some VAE that obeys the laws."""

from __future__ import annotations

import copy
import math
from functools import partial
from itertools import product
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from test_capture import compare
from test_laws import LIKELIHOODS, POSTERIORS, ROWS, bits, counts, every_gradient_is_finite, is_rebuilt, uniform
from torch import Tensor

from pyrovae import conditionals, priors
from pyrovae.conditionals import Conditional
from pyrovae.models import CVAE, VAE
from pyrovae.models.base import Pair, evaluation_mode, structure
from pyrovae.models.rebuild import describe
from pyrovae.objectives import ELBO, IWAE, ledger, log_weights
from pyrovae.training.step import Step

TABLE = torch.cat([uniform(2), bits(2), (4 * uniform(2)).floor()], 1)
ALL_LIKELIHOODS: dict[str, tuple[Any, Tensor]] = {
    **LIKELIHOODS,
    "Mixed": (partial(conditionals.Mixed, num_classes=(0, 0, 2, 2, 4, 4)), TABLE),
    "BagOfWords": (conditionals.BagOfWords, counts(6, 9)),
    "ProductOfExperts": (conditionals.ProductOfExperts, counts(6, 9)),
    "TopicMixture": (conditionals.TopicMixture, counts(6, 9)),
}
ALL_POSTERIORS: dict[str, Any] = {
    "diagonal": conditionals.DiagonalNormal,
    "softplus": conditionals.SoftplusNormal,
    "batch norm": conditionals.NormalisedNormal,
    **POSTERIORS,
}
MIXTURE = partial(priors.GaussianMixture, num_components=2)
PRIORS: dict[str, Any] = {
    "standard": priors.StandardNormal,
    "mixture": MIXTURE,
    "Vamp": partial(priors.VampPrior, num_components=3, mean=0.5, std=0.1),
    "aggregated": priors.AggregatedPosterior,  # of the batch
    "RealNVP": partial(priors.RealNVP, num_layers=2, hidden=(4,)),
    "spline": partial(priors.SplineFlow, num_layers=2, hidden=(4,), num_bins=3),
    "Laplace-Dirichlet": partial(priors.LaplaceDirichlet, concentration=0.7),
    "Normal given y": partial(priors.ConditionalNormal, context_shape=3, hidden=(4,)),
    "each class its own": partial(priors.ClassConditional, num_classes=3, prior=MIXTURE),
}
GIVEN_Y = ("Normal given y", "each class its own")

Cell = tuple[str, str, str]

# In row i of posteriors and column j of likelihoods stands prior i + j, so that each meets each: no more cells than
# posteriors times likelihoods, which any array needs.
ARRAY: list[Cell] = [
    (list(PRIORS)[(i + j) % len(PRIORS)], posterior, likelihood)
    for (i, posterior), (j, likelihood) in product(enumerate(ALL_POSTERIORS), enumerate(ALL_LIKELIHOODS))
]
CAPTURED = ARRAY[::5]  # half a second each; every part is among them


def all_cells(quick: list[Cell]) -> list[Any]:
    """The full product, slow but for some."""
    return [
        pytest.param(cell, id=", ".join(cell), marks=() if cell in quick else pytest.mark.slow)
        for cell in product(PRIORS, ALL_POSTERIORS, ALL_LIKELIHOODS)
    ]


CELLS = all_cells(ARRAY)


def made(cell: Cell, dtype: torch.dtype = torch.float32) -> tuple[Pair, tuple[Tensor, ...]]:
    """A pair whose flows are not the identity and whose pseudo-inputs differ, and its batch."""
    prior, posterior, likelihood = cell
    p, (of_x, x) = PRIORS[prior], ALL_LIKELIHOODS[likelihood]
    p = partial(p, points=x) if prior == "aggregated" else p
    slots = {"hidden": (5,), "prior": p, "posterior": ALL_POSTERIORS[posterior], "likelihood": of_x}
    pyro.set_rng_seed(0)
    pair = CVAE(6, 2, num_classes=3, **slots) if prior in GIVEN_Y else VAE(6, 2, **slots)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    batch = (x, torch.tensor([2, 0, 1, 2])) if prior in GIVEN_Y else (x,)
    return pair.to(dtype), (x.to(dtype), *batch[1:])


def test_each_pair_of_parts_occurs():
    parts = (PRIORS, ALL_POSTERIORS, ALL_LIKELIHOODS)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert {(cell[first], cell[second]) for cell in ARRAY} == set(product(parts[first], parts[second]))
    assert [{cell[slot] for cell in CAPTURED} for slot in range(3)] == [set(of_slot) for of_slot in parts]


def test_the_array_holds_every_part_of_the_library():
    held = {type(module) for cell in ARRAY for module in made(cell)[0].modules()}
    without = {Conditional, conditionals.Flow, conditionals.Implicit, conditionals.Point}  # bases, or without a density
    without |= {conditionals.OneHotCategorical, conditionals.GumbelSoftmax}  # of codes
    not_of_reals = {priors.FactorisedBernoulli, priors.UniformCodes, priors.PixelCNN}
    for library, bases in ((priors, {priors.Flow} | not_of_reals), (conditionals, without)):
        assert {getattr(library, name) for name in library.__all__} - held <= bases


@pytest.mark.parametrize("cell", CELLS)
def test_every_gradient_is_finite(cell):
    for objective in (ELBO(), IWAE(3)):
        pair, batch = made(cell)
        every_gradient_is_finite(pair, objective, *batch)


def by_hand(pair: Pair, z: Tensor, x: Tensor, *y: Tensor) -> dict[str, Tensor]:
    """log p(z), log q(z | x) and log p(x | z) of rows z, from the slots alone, row by row of x."""
    given = [pair.condition(one) for one in y]
    found = {
        "prior": pair.prior(*given).log_prob(z),
        "posterior": pair.posterior(pair.encoder(x, *given)).log_prob(z),
        "likelihood": pair.likelihood(pair.decoder(z, *given)).log_prob(x),
    }
    assert all(value.shape == z.shape[:-1] for value in found.values())
    return found


@pytest.mark.parametrize("cell", CELLS)
def test_particles_are_drawn_at_once_and_weighed_as_the_slots_say(cell, recwarn):
    """Each particle's densities, at points they did not just draw; and stock Pyro's value with the same seed."""
    pair, batch = made(cell, torch.float64)
    with evaluation_mode(pair), torch.no_grad():
        drawn = ledger(pair, *batch, num_particles=3)
        log_p, log_q, _ = drawn.entries()
        for k, z in enumerate(drawn.values["z"]):
            want = by_hand(pair, z.clone(), *batch)
            torch.testing.assert_close(log_p["z"].expand(3, ROWS)[k], want["prior"])
            torch.testing.assert_close(log_q["z"].expand(3, ROWS)[k], want["posterior"])
            torch.testing.assert_close(log_p["x"].expand(3, ROWS)[k], want["likelihood"])
        stock = Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1)
        values = []
        for objective in (ELBO(3, closed_form=False), stock):
            pyro.set_rng_seed(3)
            values.append(objective.loss(pair.model, pair.guide, *batch))
        assert values[0] == pytest.approx(values[1], rel=1e-12)
    assert not recwarn.list  # no particle is drawn on its own


GRID = torch.cartesian_prod(*2 * [torch.arange(-7, 7, 0.1, dtype=torch.float64)])
AREA = 0.01  # of a cell of the grid


@pytest.mark.parametrize("cell", CELLS)
def test_the_elbo_is_its_integral_and_iwae_lies_between_it_and_log_p(cell):
    """Both integrals on a grid of z, which nobody draws; q has to be the density of its samples."""
    pair, batch = made(cell, torch.float64)
    batch = tuple(tensor[:1] for tensor in batch)
    with evaluation_mode(pair), torch.no_grad():
        p = by_hand(pair, GRID, *batch)
        q, log_joint = p["posterior"].exp() * AREA, p["prior"] + p["likelihood"]
        for density in (q, p["prior"].exp() * AREA):
            assert density.sum() == pytest.approx(1, abs=2e-3)
        elbo = (q * (log_joint - p["posterior"])).sum() / q.sum()
        log_p = log_joint.logsumexp(0) + math.log(AREA)
        pyro.set_rng_seed(1)
        drawn = ledger(pair, *batch, num_particles=4000)
        closed, weights = (drawn.elbo(closed_form=form).squeeze(1) for form in (True, False))
    iwae = weights.reshape(-1, 20).logsumexp(1) - math.log(20)
    means, errors = zip(*((v.mean(), v.std() / math.sqrt(len(v))) for v in (closed, weights, iwae)), strict=True)
    print(f"ELBO {means[0]:.3f}, {means[1]:.3f} of {elbo:.3f}; IWAE {means[2]:.3f}, log p(x) {log_p:.3f}")
    for mean, error in zip(means[:2], errors[:2], strict=True):
        assert abs(mean - elbo) < 4 * error + 2e-3
    assert elbo < means[2] + 4 * errors[2]
    assert means[2] < log_p + 4 * errors[2] + 2e-3
    assert elbo < log_p


@pytest.mark.parametrize("cell", all_cells(CAPTURED))
def test_the_captured_step_is_bit_equal(cell):
    pair, batch = made(cell)
    with pyro.validation_enabled(False):
        compare(Step(pair, ELBO(), structure(pair, *batch)), *batch)


@pytest.mark.parametrize("cell", CELLS)
def test_rebuilt_or_copied_it_is_the_same(cell):
    pair, batch = made(cell, torch.float64)
    if describe(pair) is not None:
        is_rebuilt(pair, lambda one: log_weights(one, *batch, num_particles=3))
    else:  # points and parts inside parts are no JSON
        assert cell[0] in ("aggregated", "each class its own")
    Step(pair, IWAE(2), structure(pair, *batch)).backward(*batch)
    values = []
    for one in (pair, copy.deepcopy(pair)):
        pyro.set_rng_seed(5)
        values.append(log_weights(one, *batch, num_particles=3))
    assert torch.equal(*values)
