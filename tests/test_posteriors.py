"""Posteriors with correlations, modes and flows: exact densities, inverses, gradients, and what they reduce to."""

import copy
import gc
import math
import weakref
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian
from test_capture import compare
from torch import distributions as td
from torch import nn

import pyrovae as pv
from pyrovae import conditionals as c
from pyrovae.models.base import Functions, structure
from pyrovae.objectives import ELBO, IWAE, PIWAE, STL, VIMCO, DReG, ReweightedWakeSleep, WakeSleep, ledger, log_weights
from pyrovae.objectives.particles import vectorises
from pyrovae.training.step import Step


@pytest.fixture(autouse=True)
def _seeded_float64():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


POSTERIORS = {
    "low rank": partial(c.LowRankNormal, rank=1),
    "full": c.FullNormal,
    "mixture": partial(c.NormalMixture, num_components=3),
    "planar": partial(c.PlanarFlow, num_steps=3),
    "radial": partial(c.RadialFlow, num_steps=3),
    "IAF": partial(c.IAF, num_steps=2),
    "spline": partial(c.SplineFlow, num_steps=2, num_bins=4, bound=3.0),
}
FLOWS = ["planar", "radial", "IAF", "spline"]


def far_from_the_start(name, length, features=3):
    """A posterior whose every part is at work."""
    conditional = POSTERIORS[name](features, length)
    with torch.no_grad():
        for parameter in conditional.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
        conditional.head.layer.weight.mul_(0.3)
        for network in getattr(conditional, "networks", ()):
            network.layers[-1].weight.mul_(0.1)
            network.layers[-1].bias.mul_(0.3)
            network.skip_layer.weight.mul_(0.2)
    return conditional


def grid(low, high, points, length):
    """Points (N, length) and their share of the volume, for functions that vanish at the border."""
    axis = torch.linspace(low, high, points)
    return torch.cartesian_prod(*[axis] * length).reshape(-1, length), (axis[1] - axis[0]) ** length


# Densities ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("name", POSTERIORS)
def test_densities_integrate_to_one(name, length):
    q = far_from_the_start(name, length)(0.5 * torch.randn(2, 3))
    points, volume = grid(-25, 25, 10_001, 1) if length == 1 else grid(-9, 9, 301, 2)
    total = (q.log_prob(points.unsqueeze(1)).exp() * volume).sum(0)
    torch.testing.assert_close(total, torch.ones(2), atol=2e-3 if length == 2 else 1e-4, rtol=0)


@pytest.mark.parametrize("name", POSTERIORS)
def test_densities_of_five_dims_integrate_to_one(name):
    q = far_from_the_start(name, 5)(0.5 * torch.randn(3))
    with torch.no_grad():
        pilot = q.sample((5000,))
        proposal = dist.MultivariateStudentT(torch.tensor(5.0), pilot.mean(0), torch.linalg.cholesky(2 * pilot.T.cov()))
        x = proposal.sample((20_000,))
        weights = (q.log_prob(x) - proposal.log_prob(x)).exp()
    error = weights.std() / math.sqrt(len(weights))
    print(weights.mean(), error)
    assert abs(weights.mean() - 1) < 4 * error
    assert error < 0.15


@pytest.mark.parametrize("name", POSTERIORS)
def test_samples_match_the_density(name):
    n = 20_000
    q = far_from_the_start(name, 2)(0.5 * torch.randn(3))
    points, volume = grid(-9, 9, 301, 2)
    p = q.log_prob(points).exp() * volume
    x = q.rsample((n,)).detach()
    for f in (lambda z: z[:, 0], lambda z: z[:, 1], lambda z: z.tanh().prod(-1), lambda z: (z[:, 0] - z[:, 1]).cos()):
        mean = (p * f(points)).sum()
        error = f(x).std() / math.sqrt(n)
        print(mean, f(x).mean(), error)
        assert abs(f(x).mean() - mean) < 4 * error + 1e-3


@pytest.mark.parametrize("name", POSTERIORS)
def test_density_of_a_draw_is_the_density_of_the_point(name):
    """With the transforms' memory and without."""
    q = far_from_the_start(name, 4)(torch.randn(5, 3))
    x = q.rsample((3,))
    torch.testing.assert_close(q.log_prob(x), q.log_prob(x.clone()), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", POSTERIORS)
def test_any_leading_dims(name):
    conditional = far_from_the_start(name, 4, features=(2, 3))
    for leading in [(), (5,), (3, 5), (3, 1, 5)]:
        features = torch.randn(*leading, 2, 3)
        q = conditional(features)
        assert (q.batch_shape, q.event_shape) == (torch.Size(leading), torch.Size([4]))
        assert q.has_rsample
        x = torch.randn(2, *leading, 4)
        assert q.log_prob(x).shape == (2, *leading)
        flat = conditional(features.reshape(-1, 2, 3)).log_prob(x.reshape(2, -1, 4))
        torch.testing.assert_close(q.log_prob(x).reshape(2, -1), flat)
        wide = q.expand((2, *leading))
        drawn = wide.rsample()
        torch.testing.assert_close(wide.log_prob(drawn), q.log_prob(drawn.clone()), rtol=1e-8, atol=1e-8)


# What they reduce to --------------------------------------------------------------------------------------------------


def diagonal(conditional, length):
    base = c.DiagonalNormal(3, length)
    base.load_state_dict({n: v for n, v in conditional.state_dict().items() if n.startswith("head.")})
    return base


@pytest.mark.parametrize("name", [*FLOWS, "full", "low rank"])
def test_with_the_rest_at_zero_it_is_the_diagonal_normal(name):
    conditional = POSTERIORS[name](3, 4)
    features, x = torch.randn(5, 3), torch.randn(5, 4)
    base = diagonal(conditional, 4)(features)
    start = conditional(features).log_prob(x)
    torch.testing.assert_close(start, base.log_prob(x), atol=0.3 if name != "low rank" else 1.0, rtol=0)
    assert not torch.equal(start, base.log_prob(x))
    with torch.no_grad():
        if name in ("IAF", "spline"):
            for made in conditional.networks:
                made.layers[-1].weight.zero_()
                made.skip_layer.weight.zero_()
        elif name in ("full", "low rank"):
            rest = conditional.below if name == "full" else conditional.factors
            rest.layer.weight.zero_()
            rest.layer.bias.zero_()
        else:
            identity = slice(3 * 4) if name == "planar" else slice(3)
            conditional.steps.layer.weight[identity] = 0.0
    q = conditional(features)
    torch.testing.assert_close(q.log_prob(x), base.log_prob(x), rtol=1e-10, atol=1e-10)
    torch.manual_seed(1)
    drawn = q.rsample()
    torch.manual_seed(1)
    if name != "low rank":  # which draws noise of its factors too
        torch.testing.assert_close(drawn, base.rsample(), rtol=1e-10, atol=1e-10)


def test_a_mixture_of_one_is_the_diagonal_normal():
    conditional = c.NormalMixture(3, 4, num_components=1)
    features = torch.randn(5, 3)
    q, base = conditional(features), diagonal(conditional, 4)(features)
    x = q.rsample()
    torch.testing.assert_close(q.log_prob(x), base.log_prob(x))
    noise = ((x - base.base_dist.loc) / base.base_dist.scale).detach()
    torch.testing.assert_close(x, base.base_dist.loc + noise * base.base_dist.scale)
    got = torch.autograd.grad(x.square().sum(), tuple(conditional.head.parameters()))
    moved = conditional.head(features)
    again = moved[0] + noise * (1e-4 + (moved[1] / 2).exp())
    for a, b in zip(got, torch.autograd.grad(again.square().sum(), tuple(conditional.head.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_low_rank_at_the_full_rank_is_full():
    low, full = far_from_the_start("low rank", 4), c.FullNormal(3, 4)
    low = c.LowRankNormal(3, 4, rank=4)
    features, x = torch.randn(3), torch.randn(7, 4)
    q = low(features)
    loc, scale = low.moments(features)
    factors = torch.stack(low.factors(features), -1)
    covariance = factors @ factors.T + scale.diag() ** 2
    tril = torch.linalg.cholesky(covariance)
    with torch.no_grad():
        for layer in (full.head.layer, full.below.layer):
            layer.weight.zero_()
        full.head.layer.bias.copy_(torch.cat([loc, 2 * (tril.diagonal() - 1e-4).log()]))
        full.below.layer.bias.copy_(tril[*torch.tril_indices(4, 4, -1)])
    torch.testing.assert_close(q.log_prob(x), full(features).log_prob(x))
    torch.testing.assert_close(q.log_prob(x), td.MultivariateNormal(loc, covariance).log_prob(x))


def test_scales_of_full_and_low_rank_have_a_floor():
    for name in ("full", "low rank", "mixture"):
        conditional = POSTERIORS[name](1, 2, min_scale=0.1)
        with torch.no_grad():
            for parameter in conditional.parameters():
                parameter.zero_()
            conditional.head.layer.bias[-len(conditional.head.layer.bias) // 2 :] = -1e4
        q = conditional(torch.zeros(1))
        torch.testing.assert_close(
            q.log_prob(torch.zeros(2)), dist.Normal(torch.zeros(2), 0.1).to_event(1).log_prob(torch.zeros(2))
        )


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2])
def test_gradient_of_a_mixtures_samples(length):
    """Against moments in closed form, weights, means and scales; Pyro's MixtureOfDiagNormals fails for the weights."""
    loc = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-1.0, 1.5]])[:, :length].requires_grad_()
    scale = torch.tensor([[0.4, 1.3], [0.8, 0.3], [1.5, 0.7]])[:, :length].requires_grad_()
    logits = torch.tensor([0.3, -0.2, 0.1]).requires_grad_()
    leaves = (loc, scale, logits)
    p = logits.softmax(-1)
    first, last = (loc[:, 0], scale[:, 0]), (loc[:, -1], scale[:, -1])
    cross = first[0] * last[0] if length == 2 else loc[:, 0] ** 2 + scale[:, 0] ** 2
    exact = (p * (first[0] ** 2 + first[1] ** 2 + cross + last[0].sin() * (-(last[1] ** 2) / 2).exp())).sum()
    want = torch.autograd.grad(exact, leaves)
    from pyrovae.conditionals.mixture import _MixtureOfDiagonalNormals

    gradients = []
    for _ in range(20):
        q = _MixtureOfDiagonalNormals(dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1))
        z = q.rsample((5000,))
        value = (z[:, 0] ** 2 + z[:, 0] * z[:, -1] + z[:, -1].sin()).mean()
        gradients.append(torch.autograd.grad(value, leaves))
    for each, exactly in zip(zip(*gradients, strict=True), want, strict=True):
        mean, error = torch.stack(each).mean(0), torch.stack(each).std(0) / math.sqrt(20)
        print(mean, error, exactly)
        assert ((mean - exactly).abs() < 5 * error + 1e-12).all()
        assert (error < 0.02).all()


class Amortised(LinearGaussian):
    """The linear-Gaussian model with a conditional of x itself as guide."""

    def __init__(self, posterior):
        super().__init__(seed=7)
        self.posterior_of_x = posterior

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior_of_x(x))


def at_the_exact_posterior(name):
    """FullNormal, or IAF of one step with its masked network linear, at p(z | x) by hand."""
    posterior = {
        "full": lambda: c.FullNormal(5, 2, min_scale=0.0),
        "low rank": lambda: c.LowRankNormal(5, 2, rank=2, min_scale=0.0),
        "IAF": lambda: c.IAF(5, 2, num_steps=1, min_scale=0.0),
    }[name]()
    pair = Amortised(posterior)
    with torch.no_grad():
        for parameter in posterior.parameters():
            parameter.zero_()
        loc_of_zero, covariance = pair.posterior(torch.zeros(1, 5))
        slope = (pair.posterior(torch.eye(5))[0] - loc_of_zero).T  # (L, D)
        tril = torch.linalg.cholesky(covariance)
        weight, bias = posterior.head.layer.weight, posterior.head.layer.bias
        weight[:2], bias[:2] = slope, loc_of_zero[0]
        if name == "low rank":
            smallest = torch.linalg.eigvalsh(covariance)[0] / 2
            bias[2:] = smallest.log()
            factors = torch.linalg.cholesky(covariance - smallest * torch.eye(2))
            posterior.factors.layer.bias.copy_(factors.T.flatten())
            return pair
        bias[2:] = 2 * tril.diagonal().log()
        if name == "full":
            posterior.below.layer.bias.copy_(tril[1:, 0])
            return pair
        # z_2 = m_2 + t (z_1 - m_1) + noise, with t (z_1 - m_1) as the shift that the network makes.
        (network,), t = posterior.networks, tril[1, 0] / tril[0, 0]
        skip = network.skip_layer.weight  # (2 parameters x 2 elements, 5 of x and 2 of z)
        skip[1, 5] = t
        skip[1, :5] = -t * slope[0]
        network.layers[-1].bias[1] = -t * loc_of_zero[0, 0]
    return pair


@pytest.mark.parametrize("name", ["full", "low rank", "IAF"])
def test_an_exact_posterior_is_reached(name):
    """Each log-weight is log p(x), so that each bound is, and the gradient of STL has no noise."""
    pair = at_the_exact_posterior(name)
    x = pair.sample(4)
    want = pair.log_prob(x)
    covariance = pair.posterior(x)[1]
    assert abs(covariance[0, 1] / covariance.diagonal().prod().sqrt()) > 0.3
    torch.testing.assert_close(log_weights(pair, x, num_particles=3), want.expand(3, 4), rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad(Step(pair, STL(2), structure(pair, x))(x), tuple(pair.posterior_of_x.parameters()))
    assert max(gradient.abs().max() for gradient in gradients) < 1e-10


def small_vae(name, x, away=0.2, latent_dim=3, **options):
    torch.manual_seed(3)
    vae = pv.VAE(x.shape[1:], latent_dim, hidden=(5,), posterior=partial(POSTERIORS[name], **options))
    with torch.no_grad():
        for parameter in vae.posterior.parameters():
            parameter.add_(away * torch.randn_like(parameter))
    return vae


X = (torch.arange(24.0).reshape(4, 6) * 0.37 % 1).round()


@pytest.mark.parametrize("name", POSTERIORS)
def test_stl_and_dreg_follow_the_path_and_not_the_score(name):
    """Against autograd through a frozen copy, whose density knows no parameters: Roeder et al.'s own construction."""
    x = X.double()
    vae = small_vae(name, x)
    parameters = tuple(vae.posterior.parameters()) + tuple(vae.encoder.parameters())
    frozen = copy.deepcopy(vae).requires_grad_(False)
    for objective, power in ((STL(3), None), (DReG(3), 2), (PIWAE(4, num_groups=2), None)):
        if isinstance(objective, PIWAE):  # the score too: IWAE's own gradient, in each group
            objective = PIWAE(3, num_groups=1)
        torch.manual_seed(0)
        got = torch.autograd.grad(Step(vae, objective, structure(vae, x))(x), parameters)
        torch.manual_seed(0)
        drawn = ledger(vae, x, num_particles=3)
        z = drawn.values["z"]  # (3, B, L), with its path
        log_p = vae.prior().log_prob(z) + vae.likelihood(vae.decoder(z)).log_prob(x)
        if isinstance(objective, PIWAE):
            value = (drawn.log_weights().logsumexp(0) - math.log(3)).mean()
        else:
            log_q = frozen.posterior(frozen.encoder(x)).log_prob(z + 0.0)
            log_w = log_p - log_q
            weights = torch.full_like(log_w, 1 / 3) if power is None else log_w.detach().softmax(0) ** power
            value = (weights * log_w).sum(0).mean()
        want = torch.autograd.grad(-value, parameters)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
        assert max(g.abs().max() for g in got) > 1e-3


@pytest.mark.parametrize("name", POSTERIORS)
def test_score_at_a_fixed_point_against_finite_differences(name):
    """What wake-sleep follows: the derivative of log q at z by the parameters, inverse and all."""
    conditional = small_vae(name, X).double().posterior
    features, z = torch.randn(2, 5), torch.randn(2, 3)
    for parameter in conditional.parameters():
        (gradient,) = torch.autograd.grad(conditional(features).log_prob(z).sum(), parameter)
        direction = torch.randn_like(parameter)
        values = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                parameter.add_(step * direction)
                values.append(conditional(features).log_prob(z).sum())
        with torch.no_grad():
            parameter.add_(1e-5 * direction)
        want = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", POSTERIORS)
def test_elbo_falls_back_to_samples_where_the_kl_has_no_closed_form(name):
    vae, x = small_vae(name, X), X.double()
    assert not ledger(vae, x).closed_form_kl()
    for mine, theirs in (
        (ELBO(2), pyro.infer.TraceMeanField_ELBO(2, vectorize_particles=True)),
        (ELBO(2), pyro.infer.Trace_ELBO(2, vectorize_particles=True)),
    ):
        losses = []
        for objective in (mine, theirs):
            pyro.set_rng_seed(0)
            losses.append(Step(vae, objective, structure(vae, x))(x))
        torch.testing.assert_close(*losses)


@pytest.mark.parametrize("name", POSTERIORS)
def test_particles_are_drawn_at_once_and_evaluated_in_chunks(name, recwarn):
    vae, x = small_vae(name, X, away=0.03), X.double()
    known = structure(vae, x)
    assert vectorises(vae, (x,), known)
    log_p, log_q, _ = ledger(vae, x, num_particles=5, known=known).entries()
    assert log_q["z"].shape == log_p["x"].shape == (5, 4)
    estimate = pv.log_likelihood(vae, x, num_samples=2000, batch_size=3)
    with torch.no_grad():  # the prior as proposal knows nothing of q
        z = vae.prior().sample((20_000,))
        weights = (vae.likelihood(vae.decoder(z.unsqueeze(1))).log_prob(x)).exp()
    want = weights.mean(0).log()
    print(estimate.per_datum, want)
    torch.testing.assert_close(estimate.per_datum, want, atol=0.1, rtol=0)
    assert not recwarn.list


@pytest.mark.parametrize("objective", [IWAE(3), STL(2), ReweightedWakeSleep(2)])
@pytest.mark.parametrize("name", POSTERIORS)
def test_captured_steps_are_the_eager_ones(name, objective):
    """Draws, densities of draws, and inverses: nothing that Python decides by a value."""
    torch.set_default_dtype(torch.float32)
    # Small, for each operation of an inverse is traced: two steps where their orders differ.
    options = {"planar": {"num_steps": 1}, "radial": {"num_steps": 1}, "spline": {"num_bins": 2}}.get(name, {})
    vae = small_vae(name, X, latent_dim=2, **options)
    compare(Step(vae, objective, structure(vae, X)), X)


@pytest.mark.parametrize("name", FLOWS)
def test_nothing_of_a_step_stays(name):
    """Neither the graph of the last draw, which would break deepcopy, nor a cycle that only the collector finds."""
    vae, x = small_vae(name, X), X.double()
    gc.collect()
    gc.disable()
    try:
        q = vae.posterior(vae.encoder(x))
        z = q.rsample()
        q.log_prob(z).sum().backward()
        drawn = weakref.ref(z)
        del q, z
        assert drawn() is None
    finally:
        gc.enable()
    Step(vae, IWAE(3), structure(vae, x)).backward(x)
    twin = copy.deepcopy(vae)
    pyro.set_rng_seed(0)
    first = log_weights(vae, x, num_particles=2)
    pyro.set_rng_seed(0)
    assert torch.equal(first, log_weights(twin, x, num_particles=2))


@pytest.mark.parametrize("name", POSTERIORS)
def test_what_asks_for_a_density_elsewhere_gets_it(name):
    vae, x = small_vae(name, X), X.double()
    for objective in (VIMCO(3), ReweightedWakeSleep(3, insomnia=0.5), WakeSleep()):
        assert math.isfinite(Step(vae, objective, structure(vae, x)).backward(x))
    found = pv.surgery(vae, x, num_samples=100)
    assert 0 <= found.information <= math.log(4) + 0.3
    ais = pv.ais(vae, x, num_chains=2, num_temperatures=3, num_leapfrog=2, start="guide")
    assert math.isfinite(ais.value)


# Somebody's flows without an inverse ----------------------------------------------------------------------------------


def stock_planar():
    """A pair written with Pyro's own Planar, which has no inverse, and is a module that remembers its last draw."""
    torch.manual_seed(0)
    planar, slope = dist.transforms.Planar(2), nn.Parameter(torch.randn(2, 6))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ slope, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("planar", planar)
        with pyro.plate("data", len(x)):
            base = dist.Normal(x[:, :2], 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [planar]))

    return Functions(model, guide), planar


def test_flows_without_an_inverse_draw_particles_at_once(recwarn):
    pair, _ = stock_planar()
    x = torch.randn(4, 6)
    assert log_weights(pair, x, num_particles=3).shape == (3, 4)
    assert math.isfinite(pv.log_likelihood(pair, x, num_samples=20, batch_size=2).value)
    assert not recwarn.list


def test_flows_that_mix_particles_are_looped_over():
    pair, planar = stock_planar()

    def guide(x):
        pyro.module("planar", planar)
        with pyro.plate("data", len(x)):
            base = dist.Normal(x[:, :2], 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [planar, Centred()]))

    class Centred(dist.transforms.Transform):
        """Moves by the mean of all rows and particles; volume kept, wrongly."""

        domain = codomain = dist.constraints.real_vector
        bijective = True

        def __init__(self):
            super().__init__(cache_size=1)

        def _call(self, x):
            return x + x.mean((0, 1)) if x.dim() == 3 else x

        def log_abs_det_jacobian(self, x, y):
            return x.new_zeros(x.shape[:-1])

    with pytest.warns(UserWarning, match="does not vectorise"):
        log_weights(Functions(pair.model, guide), torch.randn(4, 6), num_particles=3)


@pytest.mark.parametrize(
    "ask",
    [
        lambda pair, x: Step(pair, STL(2), structure(pair, x)).backward(x),
        lambda pair, x: Step(pair, ReweightedWakeSleep(3), structure(pair, x)).backward(x),
        lambda pair, x: pv.surgery(pair, x, num_samples=10),
        lambda pair, x: pv.ais(pair, x, num_temperatures=3, num_chains=2, start="guide"),
    ],
)
def test_densities_elsewhere_of_flows_without_an_inverse_are_refused_by_name(ask):
    pair, _ = stock_planar()
    with pytest.raises(ValueError, match=r"density of site 'z' \(TransformedDist.* not just drawn.*with an inverse"):
        ask(pair, torch.randn(4, 6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: c.FullNormal(3, (2, 3)), r"event_shape is \(2, 3\), FullNormal is over vectors; pass event_shape=6"),
        (lambda: c.PlanarFlow(3, (2, 3)), r"PlanarFlow is over vectors"),
        (lambda: c.NormalMixture(3, (2, 3), num_components=2), r"NormalMixture is over vectors"),
        (lambda: c.NormalMixture(3, 2, num_components=2, min_scale=-1), r"min_scale is -1"),
        (lambda: c.LowRankNormal(3, 2, rank=3), r"rank is 3, a covariance of 2 numbers has rank 2; pass rank=2"),
        (lambda: c.RadialFlow(3, 2, num_steps=0), r"num_steps is 0"),
        (lambda: c.IAF(3, 4, hidden=(3,)), r"hidden is \(3,\), each layer needs a unit for each of the 4"),
        (lambda: c.SplineFlow(3, 2, num_bins=1), r"num_bins is 1, expected 2 to 500"),
        (lambda: c.SplineFlow(3, 2, bound=-1.0), r"bound is -1.0, expected a positive number"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
