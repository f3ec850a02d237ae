"""Pairs without some density: what refuses them, what trains them, and what they learn against known answers."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian
from pyro.infer import Predictive, Trace_ELBO
from torch import nn

import pyrovae as pv
from pyrovae import conditionals, nets
from pyrovae.distributions import Implicit
from pyrovae.distributions.implicit import has_density
from pyrovae.evaluation.predictive import encode, reconstruct
from pyrovae.models.base import Pair, structure
from pyrovae.objectives import (
    ELBO,
    AdaptiveContrast,
    AdversarialAutoencoder,
    AdversarialVB,
    DensityRatio,
    JointRatio,
    forward_kl,
    ledger,
    log_weights,
    reverse_kl,
)
from pyrovae.training.step import Step

DOUBLE = torch.float64
NOISE = dist.Normal(torch.zeros((), dtype=DOUBLE), 1.0)

# The distribution -----------------------------------------------------------------------------------------------------


def pushed(shape=(3,)):
    return Implicit(lambda eps: 2 * eps + 1, NOISE.expand([*shape, 2]).to_event(1), (2,))


def test_draws_are_what_the_generator_makes_of_noise():
    for d, shape in ((pushed(), (4, 3, 2)), (pushed().expand((5, 3)), (4, 5, 3, 2))):
        assert d.batch_shape + d.event_shape == shape[1:]
        torch.manual_seed(0)
        z = d.rsample((4,))
        torch.manual_seed(0)
        assert torch.equal(z, 2 * torch.randn(shape, dtype=DOUBLE) + 1)
    assert d.has_rsample
    assert d.support.check(z).shape == (4, 5, 3)
    with pytest.raises(ValueError, match=r"gives shape \(3, 1\), expected \(3, 2\)"):
        Implicit(lambda eps: eps[..., :1], NOISE.expand([3, 2]).to_event(1), (2,)).rsample()


def test_there_is_no_density_under_any_wrapping():
    d = Implicit(torch.sin, NOISE.expand([3]), ())
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), d)
    for wrapped in (d, d.to_event(1), d.expand([4, 3]), d.mask(torch.ones(3, dtype=torch.bool)), mixture):
        assert not has_density(wrapped)
    assert has_density(dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pytest.raises(ValueError, match=r"no density.*AdversarialVB.*pyrovae.ais"):
        d.log_prob(torch.zeros(3))


def test_the_conditional_is_an_image_of_noise_and_without_noise_a_point():
    torch.manual_seed(0)
    conditional = conditionals.Implicit((2, 3, 3), (1, 4), noise_dim=5, hidden=(7,))
    h = torch.rand(6, 2, 3, 3)
    z = conditional(h).expand((9, 6)).rsample((2,))
    assert z.shape == (2, 9, 6, 1, 4)
    assert (z.std(1) > 0).all()
    h.requires_grad_()
    (gradient,) = torch.autograd.grad(conditional(h).rsample()[0].sum(), h)
    assert gradient[0].any()
    assert not gradient[1:].any()
    point = conditionals.Implicit(7, 2, noise_dim=0)(torch.rand(6, 7)).rsample((3,))
    assert torch.equal(point[0], point[1])
    with pytest.raises(ValueError, match="hidden is empty"):
        conditionals.Implicit(7, 2, hidden=())
    with pytest.raises(ValueError, match="noise_dim"):
        conditionals.Implicit(7, 2, noise_dim=-1)


# What refuses it, and what does not -----------------------------------------------------------------------------------

BITS = torch.rand(12, 4, generator=torch.Generator().manual_seed(0)).round()


def vae(**options):
    torch.manual_seed(0)
    return pv.VAE(4, 2, **{"hidden": (8,), "posterior": conditionals.Implicit, **options})


def implicit_model():
    return vae(likelihood=conditionals.Implicit)


@pytest.mark.parametrize(
    "scores",
    [
        lambda pair: log_weights(pair, BITS),
        lambda pair: ledger(pair, BITS, num_particles=3),
        lambda pair: pv.elbo(pair, BITS),
        lambda pair: pv.log_likelihood(pair, BITS, num_samples=3),
        lambda pair: pv.expectation(pair, BITS, lambda z: z, num_samples=30),
        lambda pair: ELBO().loss(pair.model, pair.guide, BITS),
        lambda pair: pv.IWAE(3).loss(pair.model, pair.guide, BITS),
        lambda pair: pv.fit(pair, BITS, max_epochs=1, progress=False),
    ],
)
def test_what_scores_refuses_an_implicit_guide_by_its_site(scores):
    with pytest.raises(ValueError, match=r"^guide site 'z' is implicit and has no density.*AdversarialVB.*pyrovae.ais"):
        scores(vae())


def test_what_scores_refuses_an_implicit_model_by_its_site():
    for scores in (log_weights, partial(ledger, num_particles=3)):
        with pytest.raises(ValueError, match=r"^model site 'x' is implicit.*JointRatio"):
            scores(vae(posterior=conditionals.DiagonalNormal, likelihood=conditionals.Implicit), BITS)
    with pytest.raises(ValueError, match="model site 'x' is implicit"):
        pv.ais(implicit_model(), BITS, num_temperatures=2)


def test_stock_pyro_names_the_site():
    pair = vae()
    with pytest.raises(ValueError, match=r"(?s)at site 'z'.*no density"):
        Trace_ELBO().loss(pair.model, pair.guide, BITS)


def test_what_only_draws_runs():
    for pair in (vae(), implicit_model()):
        assert structure(pair, BITS).latent == ("z",)
        assert encode(pair, BITS, num_samples=3).shape == (12, 2)
        assert reconstruct(pair, BITS).shape == BITS.shape
        assert Predictive(pair.model, guide=pair.guide, num_samples=3)(BITS)["z"].shape[0] == 3
        assert pv.active_units(pair, BITS, num_samples=3).kl is None
        pv.check(pair, BITS, "mean", num_replicates=3)


# Annealed importance sampling -----------------------------------------------------------------------------------------


class ImplicitLinearGaussian(LinearGaussian):
    """Its guide draws from the exact posterior and does not say so."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, covariance = self.posterior(x)
            root = torch.linalg.cholesky(covariance)
            noise = NOISE.expand([len(x), len(root)]).to_event(1)
            pyro.sample("z", Implicit(lambda eps: loc + eps @ root.T, noise, (len(root),)))


def test_ais_evaluates_a_pair_with_an_implicit_guide():
    pair = ImplicitLinearGaussian()
    x = pair.sample(20)
    estimate = pv.ais(pair, x, num_chains=16, num_temperatures=60, num_leapfrog=5)
    want = pair.log_prob(x).mean().item()
    print(estimate, want)
    assert abs(estimate.value - want) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.1
    assert estimate.is_density
    bounds = pv.bdmc(pair, x, num_chains=4, num_temperatures=20, num_leapfrog=3)
    assert bounds.gap > -4 * bounds.gap_error
    with pytest.raises(ValueError, match=r"guide site 'z' is implicit.*start=.prior"):
        pv.ais(pair, x, start="guide", num_temperatures=2)


# Known ratios ---------------------------------------------------------------------------------------------------------


class Line(Pair):
    """z ~ N(m, v^2), x | z ~ N(a z + b, c^2), q(z | x) = N(k x + d, s^2): each with its density, or without."""

    names = ("m", "log_v", "a", "b", "log_c", "k", "d", "log_s")

    def __init__(self, implicit=(), values=(0.3, -0.1, 0.8, 0.4, -0.5, 0.5, -0.2, -0.6)):
        super().__init__()
        self.implicit = implicit
        for name, value in zip(self.names, values, strict=True):
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=DOUBLE)))

    def site(self, name, loc, scale, obs=None):
        fn = dist.Normal(loc, scale).to_event(1)
        if name in self.implicit:
            loc = fn.mean
            noise = NOISE.expand(loc.shape).to_event(1)
            fn = Implicit(lambda eps: loc + eps * scale, noise, loc.shape[-1:])
        return pyro.sample(name, fn, obs=obs)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.m.expand(1), self.log_v.exp()).to_event(1))
            self.site("x", self.a * z + self.b, self.log_c.exp(), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            self.site("z", self.k * x + self.d, self.log_s.exp())

    def p(self):
        """p(x, z)."""
        v, c = self.log_v.exp(), self.log_c.exp()
        xz = self.a * v**2
        covariance = torch.stack([torch.stack([self.a * xz + c**2, xz]), torch.stack([xz, v**2])])
        return dist.MultivariateNormal(torch.stack([self.a * self.m + self.b, self.m]), covariance)

    def q(self, mean, variance):
        """q(x, z) for data N(mean, variance)."""
        xz = self.k * variance
        covariance = torch.stack(
            [torch.stack([xz * 0 + variance, xz]), torch.stack([xz, self.k * xz + self.log_s.exp() ** 2])]
        )
        return dist.MultivariateNormal(torch.stack([self.k * 0 + mean, self.k * mean + self.d]), covariance)


DATA = (0.7, 1.5)  # mean and variance


def rows(count, seed=3):
    noise = torch.randn(count, 1, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    return DATA[0] + DATA[1] ** 0.5 * noise


class Known(nn.Module):
    """A function of what it is called with, as critic: a constant of the pair's parameters."""

    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, *values):
        return self.of(*values)


def frozen(pair):
    return Line(values=[getattr(pair, name).item() for name in pair.names]).requires_grad_(False)


def of_posterior_and_prior(pair):
    """log q(z | x) / p(z)."""
    pair = frozen(pair)
    q = lambda x: dist.Normal(pair.k * x + pair.d, pair.log_s.exp()).to_event(1)  # noqa: E731
    p = dist.Normal(pair.m.expand(1), pair.log_v.exp()).to_event(1)
    return Known(lambda x, z: q(x).log_prob(z) - p.log_prob(z))


class Reference(nn.Module):
    """N(0.4 x, 0.9^2), whatever q is."""

    def forward(self, x):
        return dist.Normal(0.4 * x, 0.9).to_event(1)


def of_posterior_and_reference(pair):
    pair, r = frozen(pair), Reference()
    q = lambda x: dist.Normal(pair.k * x + pair.d, pair.log_s.exp()).to_event(1)  # noqa: E731
    ratio = lambda x, u: q(x).log_prob(0.9 * u + 0.4 * x) - r(x).log_prob(0.9 * u + 0.4 * x)  # noqa: E731
    return AdaptiveContrast(Known(ratio), r)


def of_joints(pair):
    """log q(x) q(z | x) / p(x, z)."""
    q, p = frozen(pair).q(*DATA), frozen(pair).p()
    return Known(lambda x, z: q.log_prob(at := torch.cat([x.expand(*z.shape[:-1], 1), z], -1)) - p.log_prob(at))


@pytest.mark.parametrize("critic", [of_posterior_and_prior, of_posterior_and_reference])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_with_the_known_ratio_adversarial_vb_is_the_elbo_draw_by_draw(critic, num_particles):
    explicit, hidden, x, values = Line(), Line(implicit=("z",)), rows(10), []
    objective = AdversarialVB(critic(explicit), num_particles)
    for pair, each in (
        (explicit, ELBO(num_particles, closed_form=False)),
        (explicit, objective),
        (hidden, objective),
    ):
        pyro.set_rng_seed(0)
        values.append(each.per_datum(each.draw(pair, x, known=structure(pair, x))))
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-12, atol=1e-12)
    assert not objective.is_bound


def block_gradients(pair, objective, x, blocks=20):
    """Mean gradient of each parameter over blocks of rows, and its standard error."""
    step = Step(pair, objective, structure(pair, x[:2]))
    parameters = list(pair.parameters())
    each = []
    for part in x.chunk(blocks):
        gradients = torch.autograd.grad(-step(part), parameters, allow_unused=True, materialize_grads=True)
        each.append(torch.stack(gradients))
    each = torch.stack(each)
    return each.mean(0), each.std(0) / blocks**0.5


@pytest.mark.parametrize("critic", [of_posterior_and_prior, of_posterior_and_reference])
def test_the_gradient_of_adversarial_vb_is_that_of_the_elbo(critic):
    """Though T is fixed, for a learned prior too: E_q log p(x, z) + H[q] over N(mean, variance) data in closed form."""
    pair, x = Line(implicit=("z",)), rows(40_000)
    pyro.set_rng_seed(0)
    got, error = block_gradients(pair, AdversarialVB(critic(pair)), x)
    exact = Line()
    mean_z, variance_z = exact.k * x + exact.d, exact.log_s.exp() ** 2
    squares = (x - exact.a * mean_z - exact.b).square() + exact.a**2 * variance_z
    of_prior = (mean_z - exact.m).square() + variance_z
    elbo = -exact.log_c - squares / (2 * exact.log_c.exp() ** 2) - exact.log_v + exact.log_s
    elbo = (elbo - of_prior / (2 * exact.log_v.exp() ** 2)).mean()
    want = torch.stack(torch.autograd.grad(elbo, list(exact.parameters())))
    print(got, "+-", error, "exactly", want)
    assert ((got - want).abs() < 4 * error + 1e-12).all()
    assert (want.abs() > 4 * error).sum() >= 6


def finite_differences(pair, value, relative=1e-6):
    value().backward()
    for name, parameter in pair.named_parameters():
        with torch.no_grad():
            ends = []
            for shift in (1e-5, -2e-5, 1e-5):
                parameter.add_(shift)
                ends.append(value().item())
        gradient = 0.0 if parameter.grad is None else parameter.grad.item()
        assert gradient == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=relative, abs=1e-7), name


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdversarialVB(DensityRatio(1, 1, hidden=(8,)), 2),
        lambda: AdversarialVB(
            AdaptiveContrast(
                DensityRatio(1, 1, hidden=(8,)),
                nn.Sequential(nets.MLP(1, (4,)), conditionals.DiagonalNormal(4, 1)),
            ),
            2,
        ),
        lambda: AdversarialAutoencoder(DensityRatio(1, hidden=(8,)), 2, weight=3.0),
    ],
)
def test_gradients_are_finite_differences_with_the_critic_fixed(make):
    pair, x = Line(implicit=("z",)), rows(20)
    for name in ("m", "log_v"):  # its gradient is that of log p(z), which is no part of the value
        getattr(pair, name).requires_grad_(False)
    del pair._parameters["m"], pair._parameters["log_v"]
    pair.m, pair.log_v = torch.tensor(0.3, dtype=DOUBLE), torch.tensor(-0.1, dtype=DOUBLE)
    torch.manual_seed(0)
    objective = make()
    objective.critic.double()
    step = Step(pair, objective, structure(pair, x))

    def value():
        pyro.set_rng_seed(0)
        return step(x)

    finite_differences(pair, value)


def test_a_learned_prior_without_a_density_is_refused_by_name():
    class Prior(nn.Module):
        def __init__(self, latent_dim):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(latent_dim))

        def forward(self, context=None):
            noise = dist.Normal(torch.zeros(len(self.scale)), 1.0).to_event(1)
            return Implicit(lambda eps: eps * self.scale, noise, (len(self.scale),))

    pair = vae(prior=Prior).eval()  # where Pyro has no word on parameters that are fixed
    for objective in (AdversarialVB(DensityRatio(4, 2)), AdversarialAutoencoder(DensityRatio(2))):
        assert math.isfinite(objective.loss(pair.model, pair.guide, BITS))
        with pytest.raises(ValueError, match=r"prior of 'z' is implicit and learned.*JointRatio"):
            objective.loss_and_grads(pair.model, pair.guide, BITS)
        pair.prior.scale.requires_grad_(False)
        objective.loss_and_grads(pair.model, pair.guide, BITS)
        pair.prior.scale.requires_grad_(True)
    objective = AdversarialVB(AdaptiveContrast(DensityRatio(4, 2), nn.Identity()))
    with pytest.raises(ValueError, match="model site 'z' is implicit"):
        objective.loss(pair.model, pair.guide, BITS)


# Training -------------------------------------------------------------------------------------------------------------


def train(pair, objective, batches, steps, lr=5e-3):
    """By hand, in stock Pyro: a step of the critic and one of the pair."""
    known = structure(pair, batches(0))
    optimizers = [
        torch.optim.Adam(list(known.parameters.values()), lr=lr, betas=(0.5, 0.999)),
        torch.optim.Adam(objective.critic.parameters(), lr=lr, betas=(0.5, 0.999)),
    ]
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) for optimizer in optimizers]
    step = Step(pair, objective, known)
    for number in range(steps):
        for update in (1, 0):
            optimizers[update].zero_grad()
            x = batches(2 * number + update)
            if update:
                objective.critic_loss(pair, x, known=known).backward()
            else:
                step.backward(x)
            optimizers[update].step()
            schedules[update].step()


class OneLatent(Pair):
    """z ~ N(0, 1), x | z ~ N(f(z), s^2), and q(z | x) a network of x and noise, or a diagonal Normal."""

    def __init__(self, f, scale, posterior):
        super().__init__()
        self.f, self.scale = f, scale
        self.posterior = posterior(1, 1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.f(z), self.scale).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))

    def draws(self, x, count=20_000):
        torch.manual_seed(5)
        with torch.no_grad():
            return self.posterior(torch.full((count, 1), x)).rsample()[:, 0]


def test_adversarial_vb_reaches_the_exact_posterior_of_a_conjugate_toy():
    """z | x ~ N(x / (1 + s^2), s^2 / (1 + s^2)), for every x."""
    torch.manual_seed(0)
    pair = OneLatent(lambda z: z, 0.6, partial(conditionals.Implicit, noise_dim=2, hidden=(32,)))
    reference = nn.Sequential(nets.MLP(1, (16,)), conditionals.DiagonalNormal(16, 1))
    objective = AdversarialVB(AdaptiveContrast(DensityRatio(1, 1, hidden=(32, 32)), reference))

    def batches(number):
        return 1.36**0.5 * torch.randn(300, 1, generator=torch.Generator().manual_seed(number))

    train(pair, objective, batches, 900)
    for x in (-1.0, 0.0, 1.5):
        z = pair.draws(x)
        print(f"x {x}: mean {z.mean():.3f}, exactly {x / 1.36:.3f}; sd {z.std():.3f}, exactly {0.6 / 1.36**0.5:.3f}")
        assert z.mean().item() == pytest.approx(x / 1.36, abs=0.08)
        assert z.std().item() == pytest.approx(0.6 / 1.36**0.5, abs=0.06)


def test_adversarial_vb_reaches_a_bimodal_posterior():
    """x = z^2 + noise at x = 1.8: against quadrature, and a diagonal Normal that finds one mode."""
    grid = torch.linspace(-4, 4, 4001, dtype=DOUBLE)
    log_joint = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(grid**2, 0.7).log_prob(torch.tensor(1.8))
    exact = torch.softmax(log_joint, 0).cumsum(0)
    distances = {}
    for name, posterior in (
        ("implicit", partial(conditionals.Implicit, noise_dim=2, hidden=(32,))),
        ("diagonal", conditionals.DiagonalNormal),
    ):
        torch.manual_seed(0)
        pair = OneLatent(torch.square, 0.7, posterior)
        x = torch.full((300, 1), 1.8)
        if name == "implicit":
            train(pair, AdversarialVB(DensityRatio(1, 1, hidden=(32, 32))), lambda number, x=x: x, 1000)
        else:
            pv.fit(pair, x, max_epochs=300, lr=1e-2, compile=False, progress=False, seed=0)
        z = pair.draws(1.8)
        empirical = torch.searchsorted(z.double().sort().values, grid).double() / len(z)
        distances[name] = (empirical - exact).abs().max().item()
        mass = (z > 0).float().mean().item()
        print(f"{name}: distance {distances[name]:.3f}, mass above 0 {mass:.3f}, mean |z| {z.abs().mean():.3f}")
        if name == "implicit":
            weights = torch.softmax(log_joint, 0)
            assert mass == pytest.approx(0.5, abs=0.1)
            assert z.abs().mean().item() == pytest.approx((weights * grid.abs()).sum().item(), abs=0.08)
    assert distances["implicit"] < 0.1
    assert distances["diagonal"] > 0.2


# The joint ratio ------------------------------------------------------------------------------------------------------


def kl(a, b):
    return torch.distributions.kl_divergence(a, b)


@pytest.mark.parametrize("implicit", [("x", "z"), ("x",), ()])
def test_with_the_known_ratio_the_joint_value_is_the_divergence(implicit):
    pair, x = Line(implicit), rows(40_000)
    objective = JointRatio(of_joints(pair), 2)
    with torch.no_grad():
        each = objective.per_datum(objective.draw(pair, x, known=structure(pair, x)))
    want, error = -kl(pair.q(*DATA), pair.p()).item(), each.std().item() / len(x) ** 0.5
    print(f"{each.mean()} +- {error}, exactly {want}")
    assert abs(each.mean().item() - want) < 4 * error
    assert abs(want) > 20 * error


@pytest.mark.parametrize("of_model", [reverse_kl, forward_kl])
def test_the_gradients_of_the_joint_ratio_are_those_of_the_divergences(of_model):
    """The guide's that of KL(q || p), the model's that of KL(p || q) or of KL(q || p)."""
    pair, x = Line(("x", "z")), rows(40_000)
    pyro.set_rng_seed(0)
    got, error = block_gradients(pair, JointRatio(of_joints(pair), of_model=of_model), x)
    q, p = pair.q(*DATA), pair.p()
    names = [name for name, _ in pair.named_parameters()]
    forward = torch.autograd.grad(-kl(q, p), list(pair.parameters()), retain_graph=True)
    backward = torch.autograd.grad(-kl(p, q), list(pair.parameters()))
    want = torch.stack(
        [
            b if name in ("m", "log_v", "a", "b", "log_c") and of_model is reverse_kl else f
            for name, f, b in zip(names, forward, backward, strict=True)
        ]
    )
    print(names, got, "+-", error, "exactly", want)
    assert ((got - want).abs() < 4 * error).all()
    assert (want.abs() > 4 * error).sum() >= 6


def test_a_trained_critic_finds_the_joint_log_ratio_of_a_gaussian_simulator():
    torch.manual_seed(0)
    pair = Line(("x", "z"))
    critic = DensityRatio(1, 1, hidden=(32, 32)).double()
    objective, known = JointRatio(critic), structure(pair, rows(2))
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    for number in range(800):
        optimizer.zero_grad()
        objective.critic_loss(pair, rows(500, seed=number), known=known).backward()
        optimizer.step()
        schedule.step()
    at = pair.q(*DATA).sample((20_000,))
    x, z = at.split(1, -1)
    with torch.no_grad():
        error = (critic(x, z) - of_joints(pair)(x, z)).abs().mean().item()
    print(f"mean absolute error {error}")
    assert error < 0.1


@pytest.mark.parametrize("of_model", [reverse_kl, forward_kl])
def test_the_joint_ratio_recovers_a_gaussian_simulator(of_model):
    """Neither has a density: x = a z + b + c eps against N(0.7, 1.5), and z = k x + d + s eps its posterior."""
    torch.manual_seed(0)
    pair = Line(("x", "z"), values=(0.0, 0.0, 0.5, 0.0, -0.3, 0.1, 0.3, -0.3))
    del pair._parameters["m"], pair._parameters["log_v"]
    pair.m, pair.log_v = torch.zeros((), dtype=DOUBLE), torch.zeros((), dtype=DOUBLE)
    objective = JointRatio(DensityRatio(1, 1, hidden=(32, 32)).double(), of_model=of_model)
    start = kl(pair.q(*DATA), pair.p()).item()
    train(pair, objective, lambda number: rows(300, seed=number), 700)
    p = pair.p()
    end = kl(pair.q(*DATA), p).item()
    print(f"KL {start} to {end}; p(x) {p.mean[0]}, {p.covariance_matrix[0, 0]}")
    assert start > 0.2
    assert end < 0.02
    assert p.mean[0].item() == pytest.approx(DATA[0], abs=0.1)
    assert p.covariance_matrix[0, 0].item() == pytest.approx(DATA[1], abs=0.2)


def test_what_the_joint_ratio_can_not_draw_it_refuses_by_name():
    pair = vae()
    objective = JointRatio(DensityRatio(4, 2))
    with pytest.raises(ValueError, match=r"model site 'x' \(.*\) has no reparametrised samples"):
        objective.loss_and_grads(pair.model, pair.guide, BITS)
    with pytest.raises(TypeError, match="of_model is 'kl'"):
        JointRatio(DensityRatio(4, 2), of_model="kl")


# The adversarial autoencoder ------------------------------------------------------------------------------------------


def aggregate(pair):
    """q(z)."""
    q = pair.q(*DATA)
    return dist.Normal(q.mean[1:], q.variance[1:].sqrt()).to_event(1)


def of_aggregate_and_prior(pair):
    pair = frozen(pair)
    q, p = aggregate(pair), dist.Normal(pair.m.expand(1), pair.log_v.exp()).to_event(1)
    return Known(lambda z: q.log_prob(z) - p.log_prob(z))


def test_with_the_known_ratio_the_autoencoder_pays_for_the_divergence_and_has_its_gradient():
    pair, x = Line(("z",)), rows(40_000)
    prior = lambda: dist.Normal(pair.m.expand(1), pair.log_v.exp()).to_event(1)  # noqa: E731
    critic = of_aggregate_and_prior(pair)
    parts = []
    for weight in (0.0, 3.0):
        pyro.set_rng_seed(0)
        parts.append(block_gradients(pair, AdversarialAutoencoder(critic, weight=weight), x)[0])
    pyro.set_rng_seed(0)
    error = block_gradients(pair, AdversarialAutoencoder(critic, weight=3.0), x)[1]
    got = (parts[0] - parts[1]) / 3.0
    divergence = kl(aggregate(pair), prior())
    want = torch.stack(
        torch.autograd.grad(divergence, list(pair.parameters()), allow_unused=True, materialize_grads=True)
    )
    print(got, "+-", error / 3, "exactly", want)
    assert ((got - want).abs() < 4 * error / 3 + 1e-12).all()
    assert (want.abs() > 4 * error / 3).sum() >= 4
    values = []
    for weight in (0.0, 3.0):
        pyro.set_rng_seed(0)
        objective = AdversarialAutoencoder(critic, weight=weight)
        with torch.no_grad():
            values.append(objective.per_datum(objective.draw(pair, x, known=structure(pair, x))))
    paid = (values[0] - values[1]) / 3.0
    assert abs(paid.mean() - divergence).item() < 4 * paid.std().item() / 200
    pyro.set_rng_seed(0)
    drawn = ledger(Line(), x)
    observed = next(term for term in drawn.terms if term.kind == "observed").log_prob
    torch.testing.assert_close(values[0], observed)


def test_the_autoencoder_with_a_deterministic_encoder_matches_the_prior():
    x = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.7]) + 1.0
    spreads = {}
    for weight in (0.0, 5.0):
        torch.manual_seed(0)
        pair = pv.VAE(
            2,
            1,
            hidden=(16,),
            posterior=partial(conditionals.Implicit, noise_dim=0, hidden=(16,)),
            likelihood=conditionals.FixedNormal,
        )
        objective = AdversarialAutoencoder(
            DensityRatio(1, hidden=(32,)),
            weight=weight,
            critic_optimizer=partial(torch.optim.Adam, lr=1e-2, betas=(0.5, 0.9)),
        )
        pv.fit(
            pair, x, objective=objective, max_epochs=25, batch_size=100, lr=5e-3, compile=False, progress=False, seed=0
        )
        z = encode(pair, x)
        assert torch.equal(z, encode(pair, x, seed=1)), "no noise"
        normal = dist.Normal(0.0, 1.0).cdf(z[:, 0].sort().values.cpu())
        spreads[weight] = (normal - torch.linspace(0, 1, len(z))).abs().max().item()
    print(spreads)
    assert spreads[5.0] < 0.15 < 0.25 < spreads[0.0]
