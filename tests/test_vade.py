"""VaDE against brute-force sums over its clusters, against the VAE that it is, and against scikit-learn."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from sklearn.mixture import GaussianMixture as Sklearn

from pyrovae import cluster_accuracy, conditionals, fit, priors
from pyrovae.models import VAE, MeanFieldVaDE, VaDE
from pyrovae.models.base import structure
from pyrovae.objectives import ELBO, IWAE, ledger, log_weights
from pyrovae.priors.covariances import DiagonalCovariance, FullCovariance, TiedCovariance
from pyrovae.training.step import Step

COVARIANCES = [{}, {"covariance": FullCovariance}, {"covariance": TiedCovariance}]
X = torch.rand(5, 6, generator=torch.Generator().manual_seed(0)).round().double()


def small(cls=VaDE, num_components=3, **options):
    pyro.set_rng_seed(0)
    pair = cls(6, 2, num_components, hidden=(7,), **{"spread": 0.4, **options}).double()
    with torch.no_grad():  # nothing at its start: weights, scales and means all say something
        for parameter in (pair.prior.logits, *pair.prior.covariance.parameters(), pair.posterior.head.layer.bias):
            parameter.add_(0.5 * torch.randn_like(parameter))
    return pair


def sigmas(prior):
    """Sigma of each component, from the parameters."""
    if isinstance(prior.covariance, DiagonalCovariance):
        return [torch.diag(0.01**2 + torch.exp(2 * s)) for s in prior.covariance.log_scale]
    raw = prior.covariance.raw_tril
    factors = raw.tril(-1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())
    own = factors @ factors.mT + 1e-3**2 * torch.eye(raw.size(-1), dtype=raw.dtype)
    return own.expand(prior.num_components, -1, -1)


def brute_force(pair, x, z):
    """log p(x, c, z) for each c by a loop, (C, B)."""
    p = pair.prior
    weights, log_x = torch.softmax(p.logits, 0), pair.likelihood(pair.decoder(z)).log_prob(x)
    rows = []
    for c, covariance in enumerate(sigmas(p)):
        residual = z - p.loc[c]
        log_z = -0.5 * (residual @ torch.linalg.inv(covariance) * residual).sum(-1)
        log_z = log_z - 0.5 * torch.log(torch.det(2 * math.pi * covariance))
        rows.append(torch.log(weights[c]) + log_z + log_x)
    return torch.stack(rows)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_each_weight_is_the_sum_over_clusters(covariance):
    pair = small(**covariance)
    drawn = ledger(pair, X, num_particles=4)
    for weights, z in zip(drawn.log_weights(), drawn.values["z"], strict=True):
        want = brute_force(pair, X, z).logsumexp(0) - pair.posterior_of(X).log_prob(z)
        torch.testing.assert_close(weights, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_bound_is_that_of_stock_pyro_and_of_the_vae_with_that_prior(covariance):
    """Same seed, same z: TraceEnum_ELBO sums c, the VAE's prior has it summed, and so does this library."""
    pair = small(**covariance)
    vae = VAE(6, 2, hidden=(7,), encoder=pair.encoder, decoder=pair.decoder, prior=pair.prior,
              posterior=pair.posterior, likelihood=pair.likelihood)  # fmt: skip
    losses = []
    for one, objective in [
        (pair, TraceEnum_ELBO(max_plate_nesting=1)),
        (pair, ELBO()),
        (vae, ELBO()),
        (vae, Trace_ELBO()),
    ]:
        pyro.set_rng_seed(3)
        losses.append(objective.loss(one.model, one.guide, X))
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-11)


@pytest.mark.parametrize("cls", [VaDE, MeanFieldVaDE])
def test_one_component_is_the_vae_with_that_normal_as_prior(cls):
    class Normal(torch.nn.Module):
        def __init__(self, prior):
            super().__init__()
            self.loc, self.scale = prior.loc[0].detach(), prior.scale[0].detach()

        def forward(self, context=None):
            return dist.Normal(self.loc, self.scale).to_event(1)

    pair = small(cls, num_components=1)
    vae = VAE(6, 2, encoder=pair.encoder, decoder=pair.decoder, prior=Normal(pair.prior),
              posterior=pair.posterior, likelihood=pair.likelihood)  # fmt: skip
    for objective in (ELBO(closed_form=False), IWAE(3)):
        values = []
        for one in (pair, vae):
            pyro.set_rng_seed(3)
            values.append(objective.loss(one.model, one.guide, X))
        assert values[0] == pytest.approx(values[1], abs=1e-11)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_factorised_bound_lies_below_by_the_kl_of_its_clusters(covariance):
    """For every z that is drawn: log w - E_q(c|x) [log w(c) - log q(c|x)] = KL(q(c | x) || p(c | z))."""
    loose = small(MeanFieldVaDE, **covariance)
    drawn = ledger(loose, X)
    (z,), q = drawn.values["z"].reshape(1, 5, 2), loose.cluster_given(X)
    joint = brute_force(loose, X, z).T  # (B, C)
    p = torch.distributions.Categorical(logits=joint)
    gap = torch.distributions.kl_divergence(torch.distributions.Categorical(logits=q.logits), p)
    tight = joint.logsumexp(-1) - loose.posterior_of(X).log_prob(z)
    torch.testing.assert_close(drawn.elbo(closed_form=False)[0], tight - gap, rtol=0, atol=1e-12)
    assert (gap > 1e-4).all()
    pyro.set_rng_seed(1)
    mine = -ELBO(closed_form=False).loss(loose.model, loose.guide, X)
    pyro.set_rng_seed(1)
    assert mine == pytest.approx(-TraceEnum_ELBO(max_plate_nesting=1).loss(loose.model, loose.guide, X), abs=1e-11)


def test_the_factorised_guides_clusters_are_the_best_of_their_kind():
    """By hand: KL(q(z|x) || p(z|c)) and KL(q(c|x) || pi) in closed form, and no other q(c | x) does better."""
    pair = small(MeanFieldVaDE)
    q_z, q, p = pair.posterior_of(X), pair.cluster_given(X).probs, pair.prior
    each = torch.stack(
        [torch.distributions.kl_divergence(q_z.base_dist, dist.Normal(p.loc[c], p.scale[c])).sum(-1) for c in range(3)],
        -1,
    )  # (B, C)

    def kl(q):
        return (q * (each + q.log() - p.logits.log_softmax(-1))).sum(-1)

    _, found = ledger(pair, X).parts()
    torch.testing.assert_close(sum(found.values())[0], kl(q), rtol=0, atol=1e-12)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        other = (q.log() + 0.3 * torch.randn(q.shape, generator=generator, dtype=q.dtype)).softmax(-1)
        assert (kl(other) > kl(q)).all()


@pytest.mark.parametrize("covariance", COVARIANCES[1:])
def test_the_factorised_guides_clusters_are_the_best_under_full_covariances_too(covariance):
    """q(c | x) proportional to pi_c exp -KL(q(z|x) || p(z|c)), by torch's KL of two full Normals."""
    pair = small(MeanFieldVaDE, **covariance)
    with torch.no_grad():
        for parameter in pair.prior.covariance.parameters():
            parameter.add_(torch.randn_like(parameter))
    q_z, p = pair.posterior_of(X), pair.prior
    full = torch.distributions.MultivariateNormal(q_z.mean, q_z.variance.diag_embed())
    each = [torch.distributions.kl_divergence(full, p.given(torch.tensor(c))) for c in range(3)]
    want = p.logits.log_softmax(-1) - torch.stack(each, -1)
    torch.testing.assert_close(pair.cluster_given(X).probs, want.softmax(-1), rtol=0, atol=1e-12)


def test_the_floor_holds_however_far_the_scale_falls():
    pair = small(covariance=partial(DiagonalCovariance, min_scale=0.05))
    with torch.no_grad():
        pair.prior.covariance.log_scale.fill_(-40)
    assert pair.prior.given(torch.tensor(1)).base_dist.scale.tolist() == pytest.approx([0.05, 0.05])
    assert math.isfinite(ELBO().loss(pair.model, pair.guide, X))
    assert pair.prior.scale.shape == (3, 2)


@pytest.mark.parametrize("cls", [VaDE, MeanFieldVaDE])
def test_clusters_do_not_repeat_the_networks(cls):
    """x does not depend on c: the decoder meets each z once, not once for each cluster."""
    pair, seen = small(cls), []
    for network in (pair.encoder, pair.decoder, pair.likelihood):
        network.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape[:-1])))
    Step(pair, ELBO(4), structure(pair, X)).backward(X)
    calls = [math.prod(leading) for leading in seen[-3:]]
    assert sorted(calls) == [5, 4 * 5, 4 * 5]  # rows encoded once, K particles of each decoded


# Initialisation -------------------------------------------------------------------------------------------------------


def identity(**options):
    """A VaDE of vectors that are their own codes."""
    pair = VaDE(2, 2, 3, hidden=(), likelihood=partial(conditionals.FixedNormal, scale=0.1), **options).double()
    with torch.no_grad():
        for head in (pair.posterior.head, pair.likelihood.head):
            head.layer.weight[:2] = torch.eye(2)
            head.layer.bias[:2] = 0.0
    return pair


def blobs(rows=300):
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 6.0]], dtype=torch.float64)
    c = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), rows, replacement=True, generator=generator)
    return centres[c] + 0.5 * torch.randn(rows, 2, generator=generator, dtype=torch.float64), c


@pytest.mark.parametrize("covariance", [DiagonalCovariance, FullCovariance, TiedCovariance])
def test_initialise_puts_the_mixture_of_scikit_learn_on_the_codes(covariance):
    x, c = blobs()
    x = x @ torch.tensor([[1.0, 0.3], [0.0, 1.0]], dtype=x.dtype)  # correlated
    pair = identity(covariance=covariance)
    fitted = pair.initialise_(x, seed=4, num_restarts=3, posterior_scale=False)
    floor = 1e-3 * x.var(0, correction=0).mean().item()
    kind = {DiagonalCovariance: "diag", FullCovariance: "full", TiedCovariance: "tied"}[covariance]
    want = Sklearn(3, covariance_type=kind, n_init=3, reg_covar=floor, random_state=4).fit(x.numpy())
    np.testing.assert_allclose(pair.prior.component().probs.detach(), want.weights_, atol=1e-12)
    np.testing.assert_allclose(pair.prior.loc.detach(), want.means_, atol=1e-12)
    np.testing.assert_allclose(
        pair.prior().log_prob(x).detach(), want.score_samples(x.numpy()), atol=1e-9
    )  # the density, constants included
    assert cluster_accuracy(c, fitted.predict(x.numpy())) > 0.98


def test_a_balanced_start_is_the_likeliest_restart_with_equal_weights():
    """Three clusters, two of which touch, and one with two lobes: to merge the two and split the one is likelier."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [1.5, 0.0], [30.0, 0.0]], dtype=torch.float64)
    x = centres.repeat(150, 1) + torch.randn(450, 2, generator=generator, dtype=torch.float64)
    x[2::3, 0] += 2.5 * (torch.rand(150, generator=generator) < 0.5)
    options = {"covariance_type": "diag", "reg_covar": 1e-3 * x.var(0, correction=0).mean().item()}
    state = np.random.RandomState(0)
    restarts = [Sklearn(3, random_state=state, **options).fit(x.numpy()) for _ in range(6)]
    values = []
    for one in restarts:
        normals = dist.Normal(torch.from_numpy(one.means_), torch.from_numpy(one.covariances_).sqrt()).to_event(1)
        values.append(float((normals.log_prob(x[:, None]) - math.log(3)).logsumexp(-1).mean()))
    likelihoods = [one.lower_bound_ for one in restarts]
    best = {True: values.index(max(values)), False: likelihoods.index(max(likelihoods))}
    for balanced in (True, False):
        fitted = identity().initialise_(x, seed=0, num_restarts=6, balanced=balanced, posterior_scale=False)
        np.testing.assert_allclose(fitted.means_, restarts[best[balanced]].means_)
        np.testing.assert_allclose(fitted.weights_, restarts[best[balanced]].weights_)
        assert (fitted.weights_.max() < 0.4) == balanced


def test_initialise_takes_the_posterior_scale_with_the_best_bound():
    """A linear decoder of noise 0.1: the best q(z | x) has scale near a fifth of sigma = 0.5."""
    x, _ = blobs()
    pair = identity()
    pair.initialise_(x, seed=0)
    scale = pair.posterior_of(x).base_dist.scale
    within = (pair.prior.component().probs @ pair.prior.scale**2).sqrt()
    fractions = (scale / within)[0]
    assert torch.allclose(scale, scale[:1].expand_as(scale))  # the same for all x
    assert fractions.tolist() == pytest.approx([0.25, 0.25], rel=1e-6)  # of 0.5, 0.25 and 0.1 the nearest to 0.2


def test_initialise_leaves_random_states_and_modes_as_they_were():
    x, _ = blobs()
    pair = identity().train()
    before, python = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = pair.initialise_(x, seed=1).means_
    assert torch.equal(before, torch.get_rng_state())
    assert (np.random.get_state()[1] == python).all()  # noqa: NPY002
    assert pair.training
    assert (identity().initialise_(x, seed=1).means_ == first).all()


def test_bad_input_is_named():
    x, _ = blobs()
    with pytest.raises(ValueError, match="the data have 2 rows for 3 components"):
        identity().initialise_(x[:2])
    with pytest.raises(ValueError, match="2 rows for 3 components"):
        fit(identity(), x[:2], max_epochs=1, progress=False)
    with pytest.raises(ValueError, match="num_restarts is 0"):
        identity().initialise_(x, num_restarts=0)
    with pytest.raises(ValueError, match="all alike"):
        identity().initialise_(x[:1].expand(9, 2))
    with pytest.raises(TypeError, match=r"FullNormal.*posterior_scale=False"):
        identity(posterior=conditionals.FullNormal).initialise_(x)
    flow = partial(conditionals.PlanarFlow, num_steps=1)
    with pytest.raises(ValueError, match="no mean in closed form"):
        VaDE(2, 2, 3, hidden=(4,), posterior=flow).initialise_(x.float(), posterior_scale=False)
    with pytest.raises(ValueError, match="no mean and variance in closed form"):
        log_weights(MeanFieldVaDE(2, 2, 3, hidden=(4,), posterior=flow), x[:3].round().clamp(0, 1).float())
    with pytest.raises(ValueError, match=r"min_scale is 1\.0 and spread 0\.9"):
        VaDE(2, 2, 3, covariance=partial(DiagonalCovariance, min_scale=1.0))
    correlated = MeanFieldVaDE(2, 2, 3, hidden=(4,), posterior=conditionals.FullNormal, covariance=FullCovariance)
    with pytest.raises(ValueError, match=r"FullNormal may have correlations, which .* beside a FullCovariance"):
        correlated.cluster_given(x[:3].float())
    for wrong in ("full", None, lambda *shapes: torch.nn.Identity()):
        with pytest.raises(TypeError, match=r"covariance is .*, what makes a Covariance is wanted"):
            VaDE(2, 2, 3, covariance=wrong)
    part = FullCovariance(3, 2)
    assert VaDE(2, 2, 3, covariance=part).prior.covariance is part
    with pytest.raises(ValueError, match=r"covariance is of shape \(3, 2\), wanted is \(4, 2\)"):
        VaDE(2, 2, 4, covariance=part)
    with pytest.raises(ValueError, match="FullCovariance is over vectors"):
        priors.GaussianMixture((2, 2), num_components=3, covariance=FullCovariance)
    with pytest.raises(ValueError, match="num_components"):
        VaDE(2, 2, 0)


@pytest.mark.parametrize("covariance", [DiagonalCovariance, FullCovariance, TiedCovariance])
def test_the_floor_of_the_prior_leaves_the_start_as_it_is(covariance):
    prior = priors.GaussianMixture(2, num_components=3, spread=0.6, covariance=partial(covariance, min_scale=0.1))
    torch.testing.assert_close(prior.covariance.matrices(), 0.64 * torch.eye(2).expand(3, 2, 2))
    torch.testing.assert_close(prior.scale, torch.full((3, 2), 0.8))


@pytest.mark.parametrize("covariance", [DiagonalCovariance, FullCovariance, TiedCovariance])
def test_variances_and_precisions_are_the_diagonals_of_the_matrices_and_of_their_inverses(covariance):
    part = covariance(3, 4, min_scale=0.2).double()
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    matrices = part.matrices()
    torch.testing.assert_close(part.variances(), matrices.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(part.precisions(), torch.linalg.inv(matrices).diagonal(dim1=-2, dim2=-1))
