"""Pairs of x and a mask: against the plain VAE, against what is missing, and against Gaussian algebra."""

from __future__ import annotations

import copy
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian
from torch import nn

import pyrovae as pv
from pyrovae import nets
from pyrovae.data import Data, Split, masked, one_of, pixels
from pyrovae.distributions import by_element
from pyrovae.distributions import masked as observed_part
from pyrovae.models.base import structure
from pyrovae.objectives import ledger
from pyrovae.training.step import Step


@pytest.fixture(autouse=True)
def _seeded():
    pyro.set_rng_seed(0)


def pairs_with_equal_weights(cls):
    """A plain convolutional VAE, and one of x and mask with partial convolutions and the same weights."""
    make = partial(nets.ConvDecoder, channels=(4, 3))
    plain = pv.VAE((2, 5, 6), 3, encoder=partial(nets.ConvEncoder, channels=(3, 4)), decoder=make).double()
    ours = cls((2, 5, 6), 3, encoder=partial(nets.PartialConvEncoder, channels=(3, 4)), decoder=make).double()
    state = plain.state_dict()
    for new, old in zip(ours.state_dict(), state, strict=True):
        ours.state_dict()[new].copy_(state[old])
    return plain, ours


def value_and_gradients(pair, *batch, objective=None):
    pyro.set_rng_seed(3)
    pair.zero_grad()
    loss = (objective or pv.IWAE(4)).differentiable_loss(pair.model, pair.guide, *batch)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in pair.parameters()]


@pytest.mark.parametrize("objective", [pv.ELBO(), pv.IWAE(4)])
@pytest.mark.parametrize("cls", [pv.InpaintingVAE, pv.PartialVAE])
def test_a_full_mask_is_the_plain_vae(cls, objective):
    plain, ours = pairs_with_equal_weights(cls)
    x = torch.rand(7, 2, 5, 6, dtype=torch.float64).round()
    want, gradients = value_and_gradients(plain, x, objective=objective)
    got, ours_ = value_and_gradients(ours, x, torch.ones_like(x, dtype=torch.bool), objective=objective)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=0)
    for a, b in zip(ours_, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("objective", [pv.ELBO(), pv.IWAE(4), pyro.infer.Trace_ELBO()])
def test_partial_vae_ignores_what_is_missing_to_the_last_bit(objective):
    pair = pv.PartialVAE(6, 2, hidden=(7,)).double()
    x = torch.rand(9, 6, dtype=torch.float64).round()
    mask = torch.rand(9, 6) < 0.6
    mask[:, 4] = False  # a column that is never observed
    first = value_and_gradients(pair, x, mask, objective=objective)
    second = value_and_gradients(pair, torch.where(mask, x, 1 - x), mask, objective=objective)
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
    head = pair.likelihood.head.layer
    assert not head.bias.grad[4]
    assert not head.weight.grad[4].any()
    assert head.weight.grad[[0, 1, 2, 3, 5]].any(1).all()
    leaf = x.clone().requires_grad_()
    pyro.set_rng_seed(3)
    with pyro.validation_enabled(False):
        objective.differentiable_loss(pair.model, pair.guide, leaf, mask).backward()
    assert not leaf.grad[~mask].any()
    assert leaf.grad[mask].any()


def test_inpainting_vae_learns_from_what_its_guide_does_not_see():
    """Its guide ignores the hidden values to the last bit; its likelihood is the whole one."""
    pair = pv.InpaintingVAE(6, 2, hidden=(7,)).double()
    x, mask = torch.rand(9, 6, dtype=torch.float64).round(), torch.rand(9, 6) < 0.6
    other = torch.where(mask, x, 1 - x)
    drawn = []
    for values in (x, other):
        pyro.set_rng_seed(0)
        drawn.append(ledger(pair, values, mask, num_particles=3))
    z = drawn[0].values["z"]
    assert torch.equal(z, drawn[1].values["z"])
    want = pair.likelihood(pair.decoder(z)).log_prob(x) + pair.prior().log_prob(z)
    want = want - pair.posterior(pair.encoder(x, mask)).log_prob(z)
    torch.testing.assert_close(drawn[0].log_weights(), want)
    assert (drawn[0].log_weights() != drawn[1].log_weights()).any()


def test_partial_weights_are_the_formula_by_hand():
    pair = pv.PartialVAE(6, 2, hidden=(7,), likelihood=pv.conditionals.LearnedNormal).double()
    x, mask = torch.randn(9, 6, dtype=torch.float64), torch.rand(9, 6) < 0.6
    drawn = ledger(pair, x, mask, num_particles=3)
    z = drawn.values["z"]
    (loc,) = pair.likelihood.head(pair.decoder(z))
    each = dist.Normal(loc, pair.likelihood.log_scale.exp()).log_prob(x)
    want = (each * mask).sum(-1) + pair.prior().log_prob(z) - pair.posterior(pair.encoder(x, mask)).log_prob(z)
    torch.testing.assert_close(drawn.log_weights(), want)


def test_the_observed_part_of_a_product():
    loc, mask = torch.randn(3, 4, 2, dtype=torch.float64), torch.rand(4, 2) < 0.5
    d = observed_part(dist.Normal(loc, 0.7).to_event(1), mask)
    assert (d.batch_shape, d.event_shape) == ((3, 4), (2,))
    x = torch.randn(4, 2, dtype=torch.float64)
    for k in range(3):
        for b in range(4):
            seen = mask[b].nonzero()[:, 0]
            want = dist.Normal(loc[k, b, seen], 0.7).log_prob(x[b, seen]).sum()
            torch.testing.assert_close(d.log_prob(x)[k, b], want)
    whole = dist.Normal(loc, 0.7).to_event(1)
    pyro.set_rng_seed(0)
    sample = d.sample()
    pyro.set_rng_seed(0)
    assert torch.equal(sample, whole.sample())
    base, dims = by_element(d)
    assert dims == 1
    assert isinstance(base, dist.Normal)
    with pytest.raises(ValueError, match="Multinomial is no product over the elements"):
        observed_part(dist.Multinomial(3, torch.ones(4, 2)), mask)


ROWS, COLUMNS = torch.tensor([True, False, True, True]), torch.tensor([False, True, True])
ELEMENTS = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.7
OWN_MASKS = {  # of a normal over (4, 2, 3), and which elements the masks leave
    "elements": (lambda d: d.mask(ELEMENTS).to_event(2), ELEMENTS),
    "columns": (lambda d: d.mask(COLUMNS).to_event(2), COLUMNS),
    "a scalar of elements": (lambda d: d.mask(torch.tensor(True)).to_event(2), torch.tensor(True)),
    "rows": (lambda d: d.to_event(2).mask(ROWS), ROWS[:, None, None]),
    "a scalar outside": (lambda d: d.to_event(2).mask(torch.tensor(False)), torch.tensor(False)),
    "no elements": (lambda d: d.mask(False).to_event(2), torch.tensor(False)),
    "all rows": (lambda d: d.to_event(2).mask(True), torch.tensor(True)),
    "between": (lambda d: d.to_event(1).mask(ELEMENTS[..., 0]).to_event(1), ELEMENTS[..., :1]),
    "everywhere": (
        lambda d: d.mask(COLUMNS).mask(ELEMENTS).to_event(1).mask(ELEMENTS[..., 0]).to_event(1).mask(ROWS),
        COLUMNS & ELEMENTS & ELEMENTS[..., :1] & ROWS[:, None, None],
    ),
}


@pytest.mark.parametrize("case", OWN_MASKS)
def test_masks_that_a_distribution_has_stay(case):
    wrap, left = OWN_MASKS[case]
    base, x = dist.Normal(torch.randn(4, 2, 3), 1.0), torch.randn(4, 2, 3)
    mask = torch.rand(4, 2, 3) < 0.6
    for seen in (mask, mask.float(), ~mask[0], ~torch.zeros(3, dtype=torch.bool)):  # float is what batches may hold
        d = observed_part(wrap(base), seen)
        assert (d.batch_shape, d.event_shape) == ((4,), (2, 3))
        each = torch.where(left & seen.bool(), base.log_prob(x), 0.0)
        torch.testing.assert_close(d.log_prob(x), each.sum((1, 2)))
    elements, dims = by_element(wrap(base))
    assert dims == 2
    torch.testing.assert_close(elements.log_prob(x), base.log_prob(x))


class FixedMask(nn.Module):
    """The affine encoder of the observed part, whose best features are a linear regression."""

    feature_shape = (5,)

    def forward(self, x, mask):
        return torch.where(mask, x, 0.0)


class Given(nn.Module):
    """A distribution of features, with affine loc and free covariance."""

    def __init__(self, gain, offset, covariance):
        super().__init__()
        self.gain, self.offset = nn.Parameter(gain), nn.Parameter(offset)
        scale_tril = torch.linalg.cholesky(covariance)
        self.below = nn.Parameter(scale_tril.contiguous())
        self.log_scale = nn.Parameter(scale_tril.diagonal().log())

    def forward(self, features):
        scale_tril = self.below.tril(-1) + self.log_scale.exp().diag()
        return dist.MultivariateNormal(features @ self.gain + self.offset, scale_tril=scale_tril)


def linear_gaussian_vae(exact: LinearGaussian) -> pv.VAE:
    """The linear-Gaussian pair as a VAE, its exact posterior as guide."""
    zeros = torch.zeros(1, 5, dtype=torch.float64)
    loc, covariance = exact.posterior(zeros)
    gain = (exact.posterior(torch.eye(5, dtype=torch.float64))[0] - loc).detach()
    vae = pv.VAE(
        5,
        2,
        encoder=nets.MLP(5, ()),
        decoder=nets.MLP(2, ()),
        posterior=Given(gain, loc[0].detach(), covariance.detach()),
        likelihood=partial(pv.conditionals.FixedNormal, scale=exact.scale),
    ).double()
    with torch.no_grad():
        vae.likelihood.head.layer.weight.copy_(exact.weight)
        vae.likelihood.head.layer.bias.copy_(exact.bias)
    return vae


def fitted_guide(pair, x, mask, posterior):
    """Mean and covariance that the masked encoder has at the optimum of the pair's ELBO, by L-BFGS."""
    optimizer = torch.optim.LBFGS(posterior.parameters(), max_iter=60, line_search_fn="strong_wolfe")
    objective = pv.ELBO()

    def loss():
        optimizer.zero_grad()
        pyro.set_rng_seed(0)
        value = objective.differentiable_loss(pair.model, pair.guide, x, mask) / len(x)
        value.backward()
        return value

    optimizer.step(loss)
    d = posterior(torch.where(mask, x, 0.0))
    return d.mean, d.covariance_matrix[0]


def test_posterior_matching_reaches_the_posterior_given_the_observed_part_and_inpainting_a_narrower_one():
    """One mask, an affine guide, the exact generator fixed: both optima are known."""
    exact = LinearGaussian()
    vae, x = linear_gaussian_vae(exact), exact.sample(20_000)
    seen = torch.tensor([True, False, True, False, False])
    mask = seen.expand_as(x)
    start = lambda: Given(torch.zeros(5, 2), torch.zeros(2), torch.eye(2)).double()  # noqa: E731
    weight = exact.weight[seen].detach()
    precision = torch.eye(2, dtype=torch.float64) + weight.T @ weight / exact.scale**2
    covariance = torch.linalg.inv(precision)
    mean = (x[:, seen] - exact.bias[seen]) @ weight @ covariance / exact.scale**2
    complete = exact.posterior(x[:1])[1].detach()

    posterior = start()
    matching = pv.PosteriorMatching(vae, encoder=FixedMask(), posterior=posterior).double()
    got_mean, got_covariance = fitted_guide(matching, x, mask, posterior)
    error = (got_mean - mean).abs().mean() / mean.std()
    print(f"matching: covariance {got_covariance.tolist()}, exact {covariance.tolist()}, mean off by {error:.4f}")
    torch.testing.assert_close(got_covariance, covariance, rtol=0.05, atol=0.01)
    assert error < 0.03

    narrow = start()
    frozen = {name: nets.Frozen(getattr(vae, name)) for name in ("decoder", "prior", "likelihood")}
    pair = pv.InpaintingVAE(5, 2, encoder=FixedMask(), posterior=narrow, **frozen).double()
    got_mean, got_covariance = fitted_guide(pair, x[:4000], mask[:4000], narrow)
    print(f"inpainting: covariance {got_covariance.tolist()}, that of p(z | x) {complete.tolist()}")
    torch.testing.assert_close(got_covariance, complete, rtol=0.15, atol=0.01)
    assert torch.linalg.eigvalsh(covariance - got_covariance).min() > 0

    imputer = matching.partial_vae()
    bound = pv.elbo(imputer, {"x": x[:500], "mask": mask[:500]}, num_particles=64).elbo
    marginal = weight @ weight.T + exact.scale**2 * torch.eye(2, dtype=torch.float64)
    want = dist.MultivariateNormal(exact.bias[seen].detach(), marginal).log_prob(x[:500, seen]).mean()
    print(f"log p(x_obs) {want:.4f}, bound {bound}")
    assert want - 0.02 < bound.value < want + 4 * bound.standard_error + 1e-3


def test_frozen_modules_stay_as_they_are():
    layers = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Dropout(0.5))
    frozen = nets.Frozen(layers)
    assert not list(frozen.parameters())
    frozen.train()
    x = torch.randn(6, 3, requires_grad=True)
    assert torch.equal(frozen(x), layers.eval()(x))
    frozen(x).sum().backward()
    assert x.grad.any()
    frozen.load_state_dict({f"module.{name}": value + 1 for name, value in layers.state_dict().items()})
    assert torch.equal(frozen.module[0].weight, layers[0].weight + 1)
    assert frozen.double().module[0].weight.dtype == torch.float64


PRIORS_OF_POSTERIORS = {
    "VampPrior": partial(pv.priors.VampPrior, num_components=3, std=0.5),
    "AggregatedPosterior": partial(pv.priors.AggregatedPosterior, points=torch.eye(5)),
}


@pytest.mark.parametrize("view", [lambda matching: matching, pv.PosteriorMatching.partial_vae])
@pytest.mark.parametrize("name", PRIORS_OF_POSTERIORS)
def test_a_fitted_prior_of_posteriors_goes_where_its_pair_goes(name, view):
    """p(z) is made of the fitted encoder, so that this is in the state, moves along and stays in evaluation mode."""
    encoder = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5))
    fitted = pv.VAE(5, 2, encoder=encoder, hidden=(7,), prior=PRIORS_OF_POSTERIORS[name])
    other = copy.deepcopy(fitted)
    torch.nn.init.ones_(other.posterior.head.layer.bias)
    one, other = (pv.PosteriorMatching(each, hidden=(7,)) for each in (fitted, other))
    z = torch.randn(4, 2)
    want = fitted.eval().prior().log_prob(z)
    assert not torch.allclose(view(other).prior().log_prob(z), want)
    loaded = view(other)
    loaded.load_state_dict(view(one).state_dict())
    for pair in (view(one).train(), loaded.train(), copy.deepcopy(view(one)), view(copy.deepcopy(one))):
        assert torch.equal(pair.prior().log_prob(z), want)
    with torch.no_grad():  # what the copies are made of is theirs
        for parameter in fitted.parameters():
            parameter.add_(1.0)
    assert torch.equal(view(one).prior().log_prob(z), want)
    moved = view(one).double().prior().log_prob(z.double())
    torch.testing.assert_close(moved, want.double())


def test_training_with_random_masks_beats_the_mean_of_the_pixels():
    """Bits that come in blocks of four: a completion that uses one bit of a block knows the others."""
    bits = torch.randint(2, (600, 3)).float().repeat_interleave(4, 1)
    data = masked(Data(Split({"x": bits[:500]}), test=Split({"x": bits[500:]})), one_of(pixels(0.5), pixels(0.2)))
    for cls in (pv.InpaintingVAE, pv.PartialVAE):
        pyro.set_rng_seed(0)
        pair = cls(12, 3, hidden=(32,))
        pv.fit(pair, data, max_epochs=12, lr=2e-2, batch_size=50, seed=0, progress=False, compile=False)
        x, mask = data.test.rows(slice(100))
        p = pair.likelihood(pair.decoder(pair.posterior(pair.encoder(x, mask)).mean)).mean
        nll = -dist.Bernoulli(p.clamp(1e-4, 1 - 1e-4)).log_prob(x)[~mask].mean().item()
        print(f"{cls.__name__}: {nll:.3f} nats per hidden bit, {math.log(2):.3f} without knowledge")
        assert nll < 0.45


def test_refused():
    pair, x = pv.InpaintingVAE(6, 2), torch.ones(4, 6)
    with pytest.raises(ValueError, match=r"mask has shape \(4, 1\), x \(4, 6\); pass one element for each of x"):
        pv.fit(pair, {"x": x, "mask": torch.ones(4, 1, dtype=torch.bool)}, max_epochs=1)
    with pytest.raises(ValueError, match="wants 'mask', the data have x"):
        pv.fit(pair, {"x": x}, max_epochs=1)
    multinomial = partial(pv.conditionals.Multinomial, total_count=3)
    with pytest.raises(ValueError, match="Multinomial is no product"):
        pv.fit(pv.PartialVAE(6, 2, likelihood=multinomial), {"x": x, "mask": x > 0}, max_epochs=1)
    with pytest.raises(TypeError, match="fitted is a InpaintingVAE, a VAE of complete data is wanted"):
        pv.PosteriorMatching(pair)


@pytest.mark.parametrize("cls", [pv.InpaintingVAE, pv.PartialVAE])
def test_a_vamp_prior_has_pseudo_inputs_that_are_observed_in_full(cls):
    pyro.set_rng_seed(0)
    pair = cls(4, 2, hidden=(5,), prior=partial(pv.priors.VampPrior, num_components=3, std=0.3))
    u, z = pair.prior.inputs(), torch.randn(6, 2)
    of_each = pair.posterior(pair.encoder(u, torch.ones(3, 4, dtype=torch.bool))).log_prob(z[:, None])  # (6, 3)
    torch.testing.assert_close(pair.prior().log_prob(z), of_each.logsumexp(1) - math.log(3))
    x, mask = torch.ones(5, 4), torch.rand(5, 4) > 0.5
    Step(pair, pv.IWAE(2), structure(pair, x, mask)).backward(x, mask)
    assert pair.prior.pseudo_inputs.grad.any()
