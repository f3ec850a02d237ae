"""The implicit optimal prior: a linear-Gaussian pair reaches its closed form, and its likelihood is the exact one."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import Dataset

from pyrovae.data import Data, Split
from pyrovae.evaluation import TiltedPair, ais, generate_from_aggregate, implicit_log_likelihood, log_likelihood
from pyrovae.models.base import Pair
from pyrovae.objectives import ELBO, DensityRatio, ImplicitPrior
from pyrovae.training.fit import fit

LOC, SCALE = torch.tensor([0.8, -0.5]), torch.tensor([0.6, 1.3])  # of the prior that the data come from
WEIGHT = torch.tensor([[1.0, 0.0], [0.0, 0.8], [0.7, 0.0]])  # orthogonal, so that posteriors are diagonal
NOISE = 0.5


class Decoded(Pair):
    """z ~ N(0, I), x | z ~ N(W z, s^2 I) with W known, and a linear guide; the data's own z ~ N(m, diag v^2)."""

    def __init__(self, exact=False):
        super().__init__()
        self.linear, self.log_scale = nn.Linear(3, 2), nn.Parameter(torch.zeros(2))
        if exact:
            precision = SCALE**-2 + (WEIGHT**2).sum(0) / NOISE**2
            with torch.no_grad():
                self.linear.weight.copy_(WEIGHT.T / NOISE**2 / precision[:, None])
                self.linear.bias.copy_(LOC / SCALE**2 / precision)
                self.log_scale.copy_(-precision.log() / 2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ WEIGHT.T.to(x), NOISE).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.linear(x), self.log_scale.exp()).to_event(1))


class Exact(nn.Module):
    """log N(z; m, diag v^2) / N(z; 0, I), and a constant that its normaliser has to take off."""

    def __init__(self, constant=0.0):
        super().__init__()
        self.constant = constant

    def forward(self, z):
        q = dist.Normal(LOC.to(z), SCALE.to(z)).to_event(1).log_prob(z)
        return q - dist.Normal(torch.zeros_like(z), 1.0).to_event(1).log_prob(z) + self.constant


def rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = LOC + SCALE * torch.randn(count, 2, generator=generator)
    return z @ WEIGHT.T + NOISE * torch.randn(count, 3, generator=generator)


def log_prob(x):
    """Of the data's own distribution."""
    covariance = WEIGHT @ (SCALE**2).diag() @ WEIGHT.T + NOISE**2 * torch.eye(3)
    return dist.MultivariateNormal(WEIGHT @ LOC, covariance).log_prob(x)


def test_fit_reaches_the_closed_form_aggregate_posterior():
    """The prior under which log p(x) is largest is the data's own, and the guide's best its posterior: q(z) is N(m, V).

    The critic may be off by what 2000 rows and its last few hundred updates leave; the ELBO's prior is off by far more.
    """
    x, found = rows(2000), {}
    for name in ("ELBO", "implicit prior"):
        torch.manual_seed(0)
        pair, critic = Decoded(), DensityRatio(2, hidden=(32, 32))
        objective = ELBO() if name == "ELBO" else ImplicitPrior(critic, critic_steps=2)
        options = {"max_epochs": 25, "batch_size": 100, "lr": 0.02, "schedule": partial(ExponentialLR, gamma=0.9)}
        fit(pair, x, objective=objective, seed=0, progress=False, **options)
        with torch.no_grad():
            loc = pair.linear(x)
            variance = loc.var(0) + pair.log_scale.mul(2).exp()
            found[name] = loc.mean(0), variance.sqrt()
        print(name, found[name], "exactly", LOC, SCALE)
    for elbo, got, want in zip(*found.values(), (LOC, SCALE), strict=True):
        assert (got - want).abs().max() < 0.1
        assert (got - want).abs().max() < 0.5 * (elbo - want).abs().max()
    z = LOC + SCALE * torch.randn(20_000, 2, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        error = (critic(z) - Exact()(z)).abs().mean().item()
    print(f"mean error of T {error}")
    assert error < 0.12
    of_x = implicit_log_likelihood(pair, critic, rows(1000, seed=9), num_samples=100, prior_samples=20_000)
    want, bare = log_prob(rows(1000, seed=9)).mean().item(), log_likelihood(pair, rows(1000, seed=9), num_samples=100)
    print(of_x, "exactly", want, "bare", bare)
    assert of_x.value == pytest.approx(want, abs=0.03)
    assert bare.value < want - 0.1


@pytest.mark.parametrize("constant", [0.0, 2.0])
def test_the_likelihood_under_the_known_prior_is_exact(constant):
    """The guide is the exact posterior under it: no noise from z is left, only that of log Z, which is the constant."""
    pair, x = Decoded(exact=True).double(), rows(50).double()
    got = implicit_log_likelihood(pair, Exact(constant), x, num_samples=30, prior_samples=30_000)
    print(got, "exactly", log_prob(x.float()).mean())
    z = got.log_normaliser
    assert abs(z.value - constant) < 4 * z.standard_error < 0.1
    assert got.standard_error == pytest.approx(z.standard_error, rel=1e-3)
    torch.testing.assert_close(got.per_datum + z.value - constant, log_prob(x.float()).double(), rtol=0, atol=1e-5)
    assert got.value == pytest.approx(got.per_datum.mean().item(), abs=1e-9)
    assert "estimated: log Z = " in str(got)
    assert got.is_reliable


class Shifted(nn.Module):
    """The exact T of posteriors far from p(z), where no draw of p(z) comes, and its log normaliser."""

    def forward(self, z):
        far = dist.Normal(torch.full_like(z, 9.0), 0.5).to_event(1).log_prob(z)
        return far - dist.Normal(torch.zeros_like(z), 1.0).to_event(1).log_prob(z) + 1.5


def test_a_normaliser_whose_mass_is_far_from_the_prior_needs_the_aggregate():
    pair, x = Decoded().double(), torch.full((40, 3), 0.0, dtype=torch.float64)
    with torch.no_grad():
        pair.linear.weight.zero_()
        pair.linear.bias.fill_(9.0)
        pair.log_scale.fill_(math.log(0.7))  # q(z) is wider than exp T(z) p(z), and covers it
    blind = implicit_log_likelihood(pair, Shifted(), x, num_samples=5, prior_samples=20_000)
    seen = implicit_log_likelihood(pair, Shifted(), x, num_samples=5, prior_samples=20_000, aggregate=x)
    print(blind.log_normaliser, seen.log_normaliser)
    assert blind.log_normaliser.value < -10
    z = seen.log_normaliser
    assert abs(z.value - 1.5) < 4 * z.standard_error < 0.1
    assert seen.per_datum - blind.per_datum == pytest.approx(blind.log_normaliser.value - z.value)


@pytest.mark.parametrize("constant", [0.0, 2.0])
def test_a_normaliser_by_the_aggregate_is_that_by_the_prior_where_both_see_it(constant):
    pair, x = Decoded(exact=True).double(), rows(300).double()
    z = implicit_log_likelihood(
        pair, Exact(constant), x, num_samples=2, prior_samples=30_001, aggregate=Data(Split({"x": x}))
    ).log_normaliser
    assert abs(z.value - constant) < 4 * z.standard_error < 0.05


def test_a_normaliser_from_few_draws_is_not_reliable():
    far = Exact()
    far.forward = lambda z: 30.0 * z.sum(-1)
    got = implicit_log_likelihood(Decoded(exact=True), far, rows(5), num_samples=30, prior_samples=1000)
    assert not got.is_reliable


def test_a_tilted_pair_is_a_pair_for_annealing_too():
    pair, x = Decoded(exact=True), rows(3)
    want = log_prob(x).mean().item() + 1.0
    got = ais(TiltedPair(pair, Exact(1.0)), x, num_chains=64, num_temperatures=40, num_leapfrog=5)
    print(got, "exactly", want)
    assert abs(got.value - want) < 4 * got.standard_error < 0.3


class OneByOne(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.zeros(3)


def test_draws_from_the_aggregate_have_its_moments():
    pair, x = Decoded(exact=True), rows(2000)
    got = generate_from_aggregate(pair, 4000, data=x, sample=True)
    other = generate_from_aggregate(pair, 4000, data=Data(Split({"x": x}), test=Split({"x": 9 + x})), sample=True)
    assert torch.equal(got, other), "not the training split"
    error = x.std(0) * math.sqrt(1 / 2000 + 1 / 4000)
    assert ((got.mean(0) - x.mean(0)).abs() < 4 * error).all()
    torch.testing.assert_close(got.T.cov(), x.T.cov(), rtol=0.1, atol=0.1)
    assert torch.equal(generate_from_aggregate(pair, 7, data=x), generate_from_aggregate(pair, 7, data=x))
    with pytest.raises(TypeError, match="rows in memory"):
        generate_from_aggregate(pair, 3, data=OneByOne())
