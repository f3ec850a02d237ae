"""The aggregated posterior is the best prior: by brute force, by closed form and by quadrature."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian
from torch import nn
from torch.distributions import kl_divergence

import pyrovae as pv
from pyrovae.evaluation.optimal_prior import OPTIMAL, OWN
from pyrovae.evaluation.surgery import surgery

FOUR = 4
CODES = 4


class Finite(pv.Pair):
    """z in 0 ... 3 of an uneven prior, x ~ N(centre_z, 1); the guide knows something of z. Each term is a sum."""

    def __init__(self, prior=(0.1, 0.2, 0.3, 0.4)):
        super().__init__()
        self.p = torch.tensor(prior, dtype=torch.float64)
        self.centre = nn.Parameter(torch.tensor([-2.0, -0.5, 0.7, 2.0], dtype=torch.float64))

    def q(self, x):
        return torch.softmax(-0.5 * (x[:, None] - 0.8 * self.centre) ** 2, -1)  # (N, C)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(self.p))
            pyro.sample("x", dist.Normal(self.centre[z], 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(self.q(x)))

    def elbo(self, x, prior):
        """Reconstruction, information and marginal KL as sums over codes, and the ELBO as one of its own."""
        q, fitted = self.q(x), dist.Normal(self.centre, 1.0).log_prob(x[:, None])
        aggregate = q.mean(0)
        reconstruction, information = (q * fitted).sum(1).mean(), (q * (q / aggregate).log()).sum(1).mean()
        marginal = (aggregate * (aggregate / prior).log()).sum()
        return reconstruction, information, marginal, (q * (fitted + prior.log() - q.log())).sum(1).mean()


def numbers(count=30):
    return 2 * torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def test_the_theorem_by_brute_force():
    """No prior on a simplex of a thousand has a higher ELBO than q(z), and each loses its marginal KL to it."""
    pair, x = Finite(), numbers()
    best = pair.q(x).mean(0).detach()
    found = []
    torch.manual_seed(0)
    for prior in [best, *dist.Dirichlet(torch.ones(CODES, dtype=torch.float64)).sample((1000,))]:
        reconstruction, information, marginal, elbo = pair.elbo(x, prior)
        assert elbo.item() == pytest.approx((reconstruction - information - marginal).item(), abs=1e-10)
        found.append((elbo.item(), marginal.item()))
    assert found[0][1] == pytest.approx(0, abs=1e-12)
    for elbo, marginal in found[1:]:
        assert elbo < found[0][0]
        assert found[0][0] - elbo == pytest.approx(marginal, abs=1e-10)


def test_gradient_ascent_of_the_prior_alone_ends_at_the_aggregate():
    """The library's own ELBO, of which the prior is the only parameter."""
    x = numbers()
    pair = Finite()
    best = pair.q(x).mean(0).detach()

    class Learned(Finite):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(CODES, dtype=torch.float64))
            self.centre.requires_grad_(False)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(logits=self.logits))
                pyro.sample("x", dist.Normal(self.centre[z], 1.0), obs=x)

    learned = Learned()
    optimizer = torch.optim.LBFGS([learned.logits], line_search_fn="strong_wolfe", max_iter=50)

    def loss():
        optimizer.zero_grad()
        value = -pv.ledger(learned, x).elbo().mean()  # KL(q || p) in closed form: log p(x | z) has no gradient left
        value.backward()
        return value.detach()

    torch.manual_seed(0)
    state = torch.get_rng_state()

    def same_draws():
        torch.set_rng_state(state)
        return loss()

    optimizer.step(same_draws)
    assert torch.allclose(learned.logits.softmax(-1), best, atol=1e-6)


def test_the_report_on_discrete_codes():
    pair, x = Finite(), numbers()
    best = pair.q(x).mean(0).detach()
    others = {"flat": torch.full((CODES,), 0.25, dtype=torch.float64), "the same as the best": best}
    priors = {name: dist.Categorical(p) for name, p in others.items()}
    found = pv.compare_priors(pair, x, priors, num_particles=2000, batch_size=7)
    assert list(found.elbo) == [OWN, "flat", "the same as the best", OPTIMAL]
    assert (found.site, found.rows) == ("z", 30)
    for name, prior in {OWN: pair.p, **others, OPTIMAL: best}.items():
        exact = pair.elbo(x, prior)
        estimates = found.reconstruction, found.information, found.marginal_kl[name], found.elbo[name]
        for wanted, got in zip(exact, estimates, strict=True):
            print(f"{name}: {got.value:.5f} +- {got.standard_error:.5f}, exact {wanted.item():.5f}")
            assert abs(got.value - wanted.item()) < FOUR * got.standard_error + 1e-6 < 0.02
    assert found.marginal_kl[OPTIMAL].standard_error == found.marginal_kl[OPTIMAL].value == 0


class Mixed(nn.Module):
    """Somebody's learned prior: the aggregate of a Gaussian pair itself, as a mixture."""

    def __init__(self, loc, tril, weights):
        super().__init__()
        self.loc, self.tril, self.weights = nn.Parameter(loc), nn.Parameter(tril), weights
        self.calls = []

    def forward(self, context=None):
        self.calls.append(self.training)
        parts = dist.MultivariateNormal(self.loc, scale_tril=self.tril)
        return dist.MixtureSameFamily(dist.Categorical(self.weights), parts)


def gaussian(count=12):
    pair = LinearGaussian()
    x = pair.sample(count)
    loc, covariance = pair.posterior(x)
    tril = torch.linalg.cholesky(covariance).detach().expand(count, 2, 2).clone()
    return pair, x, loc.detach(), tril


def test_the_report_on_a_linear_gaussian_pair(untouched):
    """The mean KL to a Gaussian prior is closed, q(z) integrated on a grid; the pair's ELBO is log p(x)."""
    pair, x, loc, tril = gaussian()
    even = torch.full((12,), 1 / 12, dtype=torch.float64)
    exactly, half = Mixed(loc, tril, even), Mixed(loc[:6], tril[:6], even[:6] / even[:6].sum())
    wide = dist.MultivariateNormal(torch.zeros(2).double(), 4 * torch.eye(2).double())
    found = pv.compare_priors(pair, x, {"exactly": exactly, "half": half, "wide": wide}, num_particles=800)
    axis = torch.arange(-9, 9, 0.03, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_q = exactly().log_prob(grid)
        standard = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)
        logs = {OWN: standard, "exactly": exactly(), "half": half(), "wide": wide, OPTIMAL: exactly()}
        mass = log_q.exp() * 0.03**2
        marginal = {name: (mass * (log_q - p.log_prob(grid))).sum().item() for name, p in logs.items()}
    q = dist.MultivariateNormal(loc, scale_tril=tril)
    own_kl = kl_divergence(q, dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double()).expand([12]))
    information = own_kl.mean().item() - marginal[OWN]
    best = pair.log_prob(x).mean().item() + marginal[OWN]  # the pair's own ELBO is log p(x)
    for name, value in marginal.items():
        for got, wanted in ((found.marginal_kl[name], value), (found.elbo[name], best - value)):
            print(f"{name}: {got.value:.4f} +- {got.standard_error:.4f}, exact {wanted:.4f}")
            assert abs(got.value - wanted) < FOUR * got.standard_error + 1e-9 < 0.2
    assert abs(found.information.value - information) < FOUR * found.information.standard_error
    assert found.elbo[OWN].standard_error < 1e-12  # each weight is log p(x)
    assert found.elbo[OWN].data_standard_error == pytest.approx((pair.log_prob(x).std() / math.sqrt(12)).item())
    assert found.marginal_kl["exactly"].value == pytest.approx(0, abs=1e-9)
    assert max(each.value for each in found.elbo.values()) == pytest.approx(found.elbo[OPTIMAL].value, abs=1e-9)
    for name, value in found.elbo.items():  # draw by draw
        assert found.elbo[OPTIMAL].value - value.value == pytest.approx(found.marginal_kl[name].value, abs=1e-9)
    assert exactly.calls[0] is False
    assert exactly.training
    parts = surgery(pair, x, num_samples=20_000)
    assert abs(parts.marginal_kl - marginal[OWN]) < FOUR * parts.standard_errors["marginal_kl"]


def test_errors_are_the_spread_over_seeds():
    pair, x, *_ = gaussian()
    found = [pv.compare_priors(pair, x, num_particles=20, seed=seed) for seed in range(60)]
    for of in (lambda f: f.marginal_kl[OWN], lambda f: f.information, lambda f: f.reconstruction):
        values = torch.tensor([of(f).value for f in found])
        said = sum(of(f).standard_error for f in found) / 60
        assert values.std().item() == pytest.approx(said, rel=0.35)  # 4 / sqrt(2 x 59)


def test_the_table():
    pair, x = Finite(), numbers()
    text = str(pv.compare_priors(pair, x, {"flat": dist.Categorical(torch.ones(CODES))}, num_particles=50))
    lines = text.splitlines()
    assert lines[0].split() == ["prior", "KL(q(z)", "||", "p(z))", "mean", "ELBO", "over", "data"]
    assert [line.split("  ")[0] for line in lines[1:4]] == [OWN, "flat", OPTIMAL]
    assert "0.00 +- 0.00" in lines[3]
    assert "mean ELBO = reconstruction" in lines[4]
    assert "30 rows; log N = 3.40" in lines[5]


def test_what_can_not_be_compared_is_told():
    pair, x, *_ = gaussian()
    normal = dist.Normal(torch.zeros(3).double(), 1.0)
    for priors, error, match in (
        ({"a": normal.to_event(1)}, ValueError, r"priors\['a'\] has batch shape \(\) and event shape \(3,\), z has"),
        ({"a": normal}, ValueError, r"batch shape \(3,\) and event shape \(\)"),
        ({"a": 3}, TypeError, r"priors\['a'\] is 3, which gives no Distribution"),
        (
            {"a": dist.Beta(torch.ones(2).double(), 2.0).to_event(1)},
            ValueError,
            r"priors\['a'\] has support IndependentConstraint\(.*\), and \d+ of the 96 draws of z lie outside of it",
        ),
        ({OWN: normal}, ValueError, "the names of rows that are always there"),
    ):
        with pytest.raises(error, match=match):
            pv.compare_priors(pair, x, priors)
    with pytest.raises(ValueError, match="num_particles is 1, from which no error can be told"):
        pv.compare_priors(pair, x, num_particles=1)
    flow = pv.NormalizingFlow(5, num_layers=2).double()
    for of in (pv.compare_priors, pv.surgery):
        with pytest.raises(ValueError, match=r"the guide puts 'z' on a point \(Delta\), and points have no aggregate"):
            of(flow, x)


def test_the_aggregated_posterior_as_the_pairs_own_prior_is_the_best():
    """The library's own: with it for p(z) the ELBO of the pair is the best of all priors', trained ones among them."""
    generator = torch.Generator().manual_seed(2)
    x = (torch.rand(12, 6, generator=generator) < torch.rand(12, 1, generator=generator)).double()
    pyro.set_rng_seed(0)
    vae = pv.VAE(6, 2, hidden=(8,), prior=partial(pv.priors.AggregatedPosterior, points=x)).double()
    pv.fit(vae, x, max_epochs=60, batch_size=12, lr=1e-2, seed=0, progress=False, compile=False, precision="float64")
    trained = {"RealNVP": pv.priors.RealNVP(2, num_layers=4, hidden=(16,)).double()}
    trained["mixture"] = pv.priors.GaussianMixture(2, num_components=12).double()
    for prior in trained.values():  # maximum likelihood under q(z): minus its cross entropy, of which the rest is fixed
        optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            (-prior().log_prob(vae.prior().sample((500,))).mean()).backward()
            optimizer.step()
    given = {**trained, "standard": pv.priors.StandardNormal(2).double()}
    found = pv.compare_priors(vae, x, given, num_particles=500)
    print(found)
    assert found.marginal_kl[OWN].value == pytest.approx(0, abs=1e-12)
    assert found.elbo[OWN].value == pytest.approx(found.elbo[OPTIMAL].value, abs=1e-12)
    for name in given:
        lost = found.marginal_kl[name]
        assert (
            lost.value > (-FOUR if name == "mixture" else FOUR) * lost.standard_error
        )  # the mixture nearly reaches it
        assert found.elbo[OWN].value - found.elbo[name].value == pytest.approx(lost.value, abs=1e-9)
    assert found.marginal_kl["standard"].value > found.marginal_kl["RealNVP"].value  # the trained one is nearer
