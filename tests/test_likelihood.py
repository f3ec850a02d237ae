"""ELBO, log-likelihood and active units of any pair against closed forms, brute force and their own errors."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian, LooseLinearGaussian, Mixture
from pyro import poutine
from torch import nn

from pyrovae import HMM, conditionals
from pyrovae.data import Data, Split
from pyrovae.distributions import Columns, CrossEntropy
from pyrovae.evaluation.estimates import Moments
from pyrovae.evaluation.likelihood import elbo, log_likelihood
from pyrovae.evaluation.units import active_units
from pyrovae.models.base import Pair
from pyrovae.objectives import log_weights
from pyrovae.reports import evaluate

FOUR = 4  # standard errors


def labelled_model(x):
    """y ~ Cat, z ~ N(0, 1), x | z, y; the guide enumerates y and draws one z for each."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(x.new_tensor([0.2, 0.5, 0.3])))
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z + 2.0 * y, 0.8), obs=x)


def labelled_guide(x):
    with pyro.plate("data", len(x)):
        logits = torch.stack([-x, 0.3 * x, x], -1)
        y = pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
        pyro.sample("z", dist.Normal(0.5 * (x - 2.0 * y), 0.9))


def coins_model(x):
    """Two enumerated sites of the model, one inside a nested plate, and a latent of the guide."""
    with pyro.plate("data", x.size(-1), dim=-1):
        b = pyro.sample("b", dist.Categorical(x.new_tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("flips", x.size(-2), dim=-2):
            sides = x.new_tensor([[0.2, 0.8], [0.6, 0.4]])[b]
            s = pyro.sample("s", dist.Categorical(sides), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Bernoulli(x.new_tensor([0.3, 0.9])[s] * torch.sigmoid(z)), obs=x)


def coins_guide(x):
    with pyro.plate("data", x.size(-1), dim=-1):
        pyro.sample("z", dist.Normal(x.new_zeros(()), 0.5))


def odd_model(x):
    """A factor, an auxiliary site of the guide, and a scale that evaluation leaves out."""
    with pyro.plate("data", len(x)):
        with pyro.poutine.scale(scale=0.3):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.factor("extra", -(z**2))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def odd_guide(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(0.5 * a, log_density=torch.full_like(a, math.log(2))))


def global_model(x):
    w = pyro.sample("w", dist.Normal(x.new_zeros(()), 2.0))
    pyro.sample("anchor", dist.Normal(w, 1.0), obs=x.new_tensor(0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def global_guide(x):
    pyro.sample("w", dist.Normal(x.new_ones(()), 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x, 0.7))


class OneByOne(LooseLinearGaussian):
    """Its network takes no leading dims, so that particles are drawn in a loop."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = z.view(len(x), -1) @ self.weight.T + self.bias
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x)


# The log-likelihood --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"batch_size": 4, "chunk": 3}, {"chunk": 1}])
def test_exact_posterior_gives_log_likelihood_without_error(options, untouched):
    pair = LinearGaussian()
    x = pair.sample(10)
    estimate = log_likelihood(pair, x, num_samples=7, **options)
    torch.testing.assert_close(estimate.per_datum, pair.log_prob(x).detach(), rtol=0, atol=1e-10)
    assert abs(estimate.value - pair.log_prob(x).mean().item()) < 1e-10
    assert estimate.standard_error < 1e-8
    torch.testing.assert_close(estimate.ess, torch.full((10,), 7.0, dtype=torch.float64))
    expected = pair.log_prob(x).std().item() / math.sqrt(10)
    assert abs(estimate.data_standard_error - expected) < 1e-10


def test_a_loose_guide_is_within_its_error_and_the_error_is_honest():
    """Over 200 repeats the sd of the estimates is the reported error, and +-2 of it cover the truth 95 % of the time.

    An sd from 200 repeats has a relative error of 1 / sqrt(2 * 199) = 5 %, so 15 % is three of them. Coverage has
    sqrt(0.95 * 0.05 / 200) = 1.5 %. K is such that the bias, half the variance per datum, is a tenth of the error.
    """
    pair = LooseLinearGaussian()
    x = pair.sample(10)
    truth = pair.log_prob(x).mean().item()
    runs = [log_likelihood(pair, x, num_samples=400, seed=seed) for seed in range(200)]
    values = torch.tensor([run.value for run in runs])
    errors = torch.tensor([run.standard_error for run in runs])
    ratio = (values.std() / errors.mean()).item()
    covered = ((values - truth).abs() < 2 * errors).double().mean().item()
    bias, allowed = (values.mean() - truth).item(), FOUR * values.std().item() / math.sqrt(200)
    expected_bias = -0.5 * 10 * errors.square().mean().item()  # a mean error e^2 = sum of variances / 100
    print(f"sd / error {ratio:.3f}, coverage {covered:.3f}")
    print(f"bias {bias:.5f}, expected {expected_bias:.5f} +- {allowed:.5f}")
    assert abs(ratio - 1) < 0.15
    assert 0.95 - FOUR * 0.015 < covered < 0.95 + FOUR * 0.015
    assert abs(bias - expected_bias) < allowed
    assert runs[0].ess.min() > 50
    assert runs[0].is_reliable


def test_the_estimate_is_low_by_half_its_variance():
    pair = LooseLinearGaussian()
    x = pair.sample(1).repeat(40000, 1)
    estimate = log_likelihood(pair, x, num_samples=100, batch_size=2000)
    error = estimate.per_datum.std().item() / math.sqrt(40000)
    bias, expected = estimate.value - pair.log_prob(x[:1]).item(), -0.5 * 40000 * estimate.standard_error**2
    print(f"bias {bias:.5f}, expected {expected:.5f}, error {error:.5f}")
    assert abs(bias - expected) < FOUR * error
    assert bias < -2 * FOUR * error


@pytest.mark.parametrize("x_depends_on_c", [True, False])
def test_enumerated_sites_are_summed(x_depends_on_c):
    pair = Mixture(x_depends_on_c)
    x = torch.tensor([-1.0, 0.4, 2.5, 5.0], dtype=torch.float64)
    estimate = log_likelihood(pair, x, num_samples=20000)
    difference = estimate.value - pair.log_prob(x).mean().item()
    print(f"difference {difference:.5f}, standard error {estimate.standard_error:.5f}")
    assert abs(difference) < FOUR * estimate.standard_error < 0.05


def test_guide_enumeration_gives_log_p_x():
    x = torch.tensor([-0.5, 1.0, 3.0], dtype=torch.float64)
    estimate = log_likelihood((labelled_model, labelled_guide), x, num_samples=20000)
    y = torch.arange(3.0, dtype=torch.float64)
    each = x.new_tensor([0.2, 0.5, 0.3]).log() + dist.Normal(2 * y, math.sqrt(1.64)).log_prob(x[:, None])
    difference = estimate.value - torch.logsumexp(each, -1).mean().item()
    print(f"difference {difference:.5f}, standard error {estimate.standard_error:.5f}")
    assert abs(difference) < FOUR * estimate.standard_error < 0.05


@pytest.mark.parametrize("sizes", [[60], [1] * 60, [7, 1, 52]])
def test_running_sums_are_the_sums(sizes):
    torch.manual_seed(0)
    log_w = 300 * torch.randn(60, 5, dtype=torch.float64).cumsum(0)  # larger and larger: the largest one keeps changing
    log_w[:, 1] = torch.randn(60, dtype=torch.float64)
    log_w[:40, 2] = -math.inf
    log_w[:, 3] = -2.5
    log_w[:, 4] = -math.inf
    weights = Moments()
    for part in log_w.split(sizes):
        weights.add(part)
    w = torch.exp(log_w - log_w.amax(0).clamp(min=-1e300))
    variance = w.var(0) / w.mean(0) ** 2 / 60
    variance[4] = math.nan  # 0 / 0, of weights that are all zero
    torch.testing.assert_close(weights.log_mean(), torch.logsumexp(log_w, 0) - math.log(60), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights.variance(), variance, rtol=1e-10, atol=1e-15, equal_nan=True)
    torch.testing.assert_close(weights.ess()[:4], (w.sum(0) ** 2 / (w**2).sum(0))[:4], rtol=1e-12, atol=0)


def test_chunks_and_batches_change_the_draws_only():
    pair = LooseLinearGaussian()
    x = pair.sample(10)
    options = [{}, {"chunk": 90}, {"chunk": 400, "batch_size": 3}, {"batch_size": 1}, {"seed": 1}]
    runs = [log_likelihood(pair, x, num_samples=1000, **o) for o in options]
    assert len({run.value for run in runs}) == len(runs)
    for option, run in zip(options[1:], runs[1:], strict=True):
        error = math.hypot(run.standard_error, runs[0].standard_error)
        print(option, f"difference {run.value - runs[0].value:.5f}, standard error {error:.5f}")
        assert abs(run.value - runs[0].value) < FOUR * error
    again = log_likelihood(pair, x, num_samples=1000, chunk=90)
    assert torch.equal(again.per_datum, runs[1].per_datum)


def test_the_default_chunk_bounds_memory(monkeypatch):
    """Rows x samples x (5 numbers of x + 2 of z in p + 2 in q) stay below the budget."""
    import pyrovae.evaluation.chunks as module

    asked, ledger = [], module.ledger

    def spy(pair, *batch, num_particles=1, **known):
        asked.append(num_particles * len(batch[0]) * 9)
        return ledger(pair, *batch, num_particles=num_particles, **known)

    monkeypatch.setattr(module, "ledger", spy)
    monkeypatch.setattr(module, "BUDGET", 2000)
    pair = LooseLinearGaussian()
    log_likelihood(pair, pair.sample(10), num_samples=100)
    assert 1800 < max(asked) <= 2000
    assert sum(asked) == (1 + 100) * 10 * 9  # one look before


def test_few_effective_samples_are_told():
    class Far(LinearGaussian):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x.new_full((2,), 4.0), 0.1).to_event(1))

    far = log_likelihood(Far(), Far().sample(20), num_samples=200)
    assert not far.is_reliable
    assert str(far).endswith("nats (too low: few samples have most of the weight; raise num_samples)")
    assert far.value + 10 * far.standard_error < Far().log_prob(Far().sample(20)).mean()  # so it is
    near = LooseLinearGaussian()
    assert str(log_likelihood(near, near.sample(20), num_samples=200)).endswith(" nats")
    exact = LinearGaussian()
    assert log_likelihood(exact, exact.sample(20), num_samples=3).is_reliable
    assert "+- unknown nats" in str(log_likelihood(near, near.sample(20), num_samples=1))


def test_the_error_sets_the_digits():
    pair = LinearGaussian()
    estimate = log_likelihood(pair, pair.sample(3), num_samples=20)
    estimate.value = -86.7613
    for error, text in {0.0213: "-86.76 +- 0.02", 0.3: "-86.8 +- 0.3", 4.0: "-87 +- 4", 0.0: "-86.76 +- 0.00"}.items():
        estimate.standard_error = error
        assert str(estimate) == f"{text} nats"


# The ELBO ------------------------------------------------------------------------------------------------------------

IDENTITIES = {
    "plain": (LooseLinearGaussian(), LooseLinearGaussian().sample(7), {"x"}, {"z"}),
    "no closed form": (LinearGaussian(), LinearGaussian().sample(7), {"x"}, {"z"}),
    "enumerated in the model": (Mixture(), torch.randn(7, dtype=torch.float64), {"x"}, {"c", "z"}),
    "enumerated in the guide": (
        (labelled_model, labelled_guide),
        torch.randn(7, dtype=torch.float64),
        {"x"},
        {"y", "z"},
    ),
    "factor, auxiliary site, scale": (
        (odd_model, odd_guide),
        torch.randn(7, dtype=torch.float64),
        {"x", "extra"},
        {"z"},
    ),
    "global latent": ((global_model, global_guide), torch.randn(7, dtype=torch.float64), {"x", "anchor"}, {"w", "z"}),
}


@pytest.mark.parametrize("case", IDENTITIES)
@pytest.mark.parametrize("num_particles", [1, 5])
def test_the_parts_add_up_to_the_elbo(case, num_particles, untouched):
    pair, x, observed, latent = IDENTITIES[case]
    for batch_size in (None, 3):
        parts = elbo(pair, x, num_particles=num_particles, batch_size=batch_size)
        assert set(parts.reconstruction) == observed
        assert set(parts.kl) == latent
        total = sum(parts.reconstruction.values()) - sum(parts.kl.values())
        assert abs(parts.elbo.value - total) < 1e-10
        assert abs(parts.elbo.per_datum.mean().item() - parts.elbo.value) < 1e-12
        assert math.isnan(parts.elbo.standard_error) == (num_particles == 1)


def test_sites_summed_in_the_model_share_an_entry():
    flips = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64)  # (2 flips, 3 data)

    parts = elbo((lambda x: coins_model(x.T), lambda x: coins_guide(x.T)), flips.T.contiguous(), num_particles=3)
    assert set(parts.kl) == {"b, s", "z"}
    assert abs(parts.elbo.value - (parts.reconstruction["x"] - sum(parts.kl.values()))) < 1e-10
    assert parts.kl["b, s"] > 0


def test_pairs_that_are_looped_over_add_up_too():
    pair = OneByOne()
    x = pair.sample(6)
    with pytest.warns(UserWarning, match="does not vectorise"):
        parts = elbo(pair, x, num_particles=3)
    assert abs(parts.elbo.value - (parts.reconstruction["x"] - parts.kl["z"])) < 1e-10
    with pytest.warns(UserWarning, match="does not vectorise"):
        estimate = log_likelihood(pair, x, num_samples=60)
    assert abs(estimate.value - pair.log_prob(x).mean().item()) < FOUR * estimate.standard_error


def test_elbo_and_its_error_against_closed_forms():
    """log p(x | z) is quadratic in z, so that its variance under q is known: with r = x - W z - b ~ N(m, S),

    Var |r|^2 = 2 tr(S^2) + 4 m' S m, and the ELBO's error is the root of its mean over K and N.
    """
    pair = LooseLinearGaussian()
    x = pair.sample(50)
    parts = elbo(pair, x, num_particles=2000, batch_size=20)
    loc, covariance = (t.detach() for t in pair.posterior(x))
    q = dist.Normal(loc + 0.3, 1.3 * covariance.diagonal().sqrt()).to_event(1)
    kl = torch.distributions.kl_divergence(q, dist.Normal(torch.zeros_like(loc), 1.0).to_event(1))
    assert abs(parts.kl["z"] - kl.mean().item()) < 1e-12
    truth = pair.elbo(x).mean().item()
    w = pair.weight.detach()
    mean, spread = x - pair.bias.detach() - (loc + 0.3) @ w.T, w @ (1.69 * covariance.diagonal().diag()) @ w.T
    variance = (2 * (spread @ spread).trace() + 4 * (mean @ spread * mean).sum(-1)) / (2 * pair.scale**2) ** 2
    error = (variance.mean() / 2000 / 50).sqrt().item()
    print(f"ELBO {parts.elbo.value:.4f}, exact {truth:.4f}; error {parts.elbo.standard_error:.5f}, exact {error:.5f}")
    assert abs(parts.elbo.value - truth) < FOUR * error
    assert abs(parts.elbo.standard_error / error - 1) < 0.05
    assert abs(parts.elbo.data_standard_error - pair.elbo(x).std().item() / math.sqrt(50)) < 0.05
    assert parts.elbo.value < log_likelihood(pair, x, num_samples=2000).value - 0.2


def test_kl_of_a_summed_site_is_that_of_its_posterior():
    pair = Mixture()
    x = torch.tensor([-1.0, 0.4, 2.5, 5.0], dtype=torch.float64)
    parts = elbo(pair, x, num_particles=4000)
    z = torch.linspace(-12, 12, 2401, dtype=torch.float64)[:, None]  # quadrature over q(z | x)
    c = torch.arange(3.0, dtype=torch.float64)[:, None, None]
    prior = torch.log_softmax(pair.logits, -1).detach()[:, None, None]
    log_joint = (
        prior + dist.Normal(pair.loc.detach()[:, None, None], 1.0).log_prob(z) + dist.Normal(z + c, 1.0).log_prob(x)
    )
    posterior = torch.log_softmax(log_joint, 0)
    q = dist.Normal(0.5 * x, 1.2).log_prob(z).exp() * 0.01
    kl = ((posterior.exp() * (posterior - prior)).sum(0) * q).sum(0).mean().item()
    print(f"KL of c {parts.kl['c']:.4f}, by quadrature {kl:.4f}")
    assert abs(parts.kl["c"] - kl) < 0.02


def test_global_latents_count_once():
    """KL(w) / N, whatever the batches; no weights of the data, and an error that knows that rows share w."""
    x = torch.linspace(-1, 2, 6, dtype=torch.float64)
    pair = (global_model, global_guide)
    q, p = dist.Normal(1.0, 0.5), dist.Normal(0.0, 2.0)
    kl = torch.distributions.kl_divergence(q, p).item()
    anchor = -0.5 * math.log(2 * math.pi) - 0.5 * (0.5**2 + 0.5**2)  # E_q log N(0.5; w, 1)
    for batch_size in (None, 2):
        parts = elbo(pair, x, num_particles=20000, batch_size=batch_size)
        print(parts.kl, kl / 6)
        assert abs(parts.kl["w"] - kl / 6) < 0.005
        assert abs(parts.reconstruction["anchor"] - anchor / 6) < 0.005
    values = [elbo(pair, x, num_particles=20, seed=seed).elbo for seed in range(100)]
    ratio = torch.tensor([v.value for v in values]).std() / torch.tensor([v.standard_error for v in values]).mean()
    print(f"sd / error {ratio:.3f}")
    assert abs(ratio - 1) < FOUR / math.sqrt(2 * 99)
    with pytest.raises(ValueError, match=r"latent sites \['w'\] lie outside the plate"):
        log_likelihood(pair, x)


def test_the_table():
    pair = LooseLinearGaussian()
    lines = str(elbo(pair, pair.sample(20))).splitlines()
    assert [line.split()[0] for line in lines] == ["ELBO", "reconstruction", "KL"]
    assert lines[0].endswith(" nats")
    assert len({line.index(".") for line in lines}) == 1  # decimal points below each other


# What is a density ---------------------------------------------------------------------------------------------------


def scoring(wrap):
    """A pair whose likelihood is CrossEntropy inside of something."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            wrap(z, x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))

    return model, guide


WRAPPED = {
    "independent": lambda z, x: pyro.sample("x", CrossEntropy(z[..., None].expand(*z.shape, 3)).to_event(1), obs=x),
    "expanded": lambda z, x: pyro.sample("x", CrossEntropy(z[..., None]).expand([*z.shape, 3]).to_event(1), obs=x),
    "masked": lambda z, x: pyro.sample(
        "x", CrossEntropy(z[..., None].expand(*z.shape, 3)).to_event(1).mask(x[..., 0] > 0.2), obs=x
    ),
    "columns": lambda z, x: pyro.sample(
        "x",
        Columns(
            [dist.Normal(z[..., None].expand(*z.shape, 1), 1.0), CrossEntropy(z[..., None].expand(*z.shape, 2))],
            torch.tensor([1, 0, 2]),
        ).to_event(1),
        obs=x,
    ),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_scores_are_flagged(case):
    x = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    pair = scoring(WRAPPED[case])
    estimate, parts = log_likelihood(pair, x, num_samples=50), elbo(pair, x)
    assert not estimate.is_density
    assert "nats (score, not a log-likelihood)" in str(estimate)
    assert "(score, not a log-likelihood)" in str(parts)


@pytest.mark.parametrize("likelihood", [conditionals.CrossEntropy, conditionals.Bernoulli])
def test_scores_of_hidden_states_are_flagged(likelihood):
    pair = HMM((4, 3), num_states=2, likelihood=likelihood)
    estimate = log_likelihood(pair, torch.ones(2, 4, 3), num_samples=2)
    assert estimate.is_density == likelihood.is_density == ("score" not in str(estimate))


def test_densities_are_not_flagged():
    pair = scoring(
        lambda z, x: pyro.sample("x", dist.Bernoulli(logits=z[..., None].expand(*z.shape, 3)).to_event(1), obs=x)
    )
    estimate = log_likelihood(pair, torch.ones(5, 3), num_samples=50)
    assert estimate.is_density
    assert "score" not in str(estimate)


# Active units --------------------------------------------------------------------------------------------------------


class TwoDead(LinearGaussian):
    """Four latent dimensions, the second and fourth of which x does not depend on; a diagonal guide."""

    def __init__(self):
        super().__init__(latent_dim=4)
        with torch.no_grad():
            self.weight[:, [1, 3]] = 0

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, covariance = self.posterior(x)
            pyro.sample("z", dist.Normal(loc, covariance.diagonal().sqrt()).to_event(1))


def test_dead_units_are_found(untouched):
    pair = TwoDead()
    x = pair.sample(300)
    units = active_units(pair, x, batch_size=70)
    loc, covariance = (t.detach() for t in pair.posterior(x))
    assert units.count == 2
    assert str(units) == "2 of 4 units of z active"
    assert (units.variance > 0.01).tolist() == [True, False, True, False]
    torch.testing.assert_close(units.variance, loc.var(0))
    assert units.variance[[1, 3]].abs().max() < 1e-25
    scale = covariance.diagonal().sqrt()
    kl = torch.distributions.kl_divergence(dist.Normal(loc, scale), dist.Normal(torch.zeros_like(loc), 1.0)).mean(0)
    torch.testing.assert_close(units.kl, kl)
    assert units.kl[[1, 3]].abs().max() < 1e-12
    assert abs(units.kl.sum().item() - elbo(pair, x).kl["z"]) < 1e-10
    assert active_units(pair, x, threshold=1e9).count == 0
    assert (
        active_units(LinearGaussian(), LinearGaussian().sample(9)).kl is None
    )  # MultivariateNormal does not factorise


@pytest.mark.parametrize("masked", [False, True])
def test_a_latent_that_is_a_number_is_one_unit(masked):
    """q(z | x) = N(x / 2, 1/2) has the exact moments of a vector of one."""

    x = torch.linspace(-2.0, 3.0, 6)
    seen = x > 0.5 if masked else torch.ones(6, dtype=torch.bool)

    def model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    for site in (None, "z"):
        units = active_units((model, guide), x, site=site)
        assert (units.count, units.site) == (1, "z")
        torch.testing.assert_close(units.variance, (x.double() / 2).var(0)[None])
        kl = torch.distributions.kl_divergence(dist.Normal(x / 2, 0.5**0.5), dist.Normal(0.0, 1.0)).double()
        assert units.kl.tolist() == pytest.approx([(kl * seen).mean().item()])

    def point(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            pyro.sample("z", dist.Delta(x / 2))

    assert active_units((model, point), x).kl is None, "it has no KL"


def test_a_mean_over_draws_makes_no_unit_active():
    """z[0] is 2 a for an a that does not know x: the mean over 100 draws of a has variance 4/100 > 0.01 over data."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("a", dist.Normal(z.sum(-1), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("z", dist.Normal(torch.stack([2 * a, x[:, 1] + a], -1), 0.5).to_event(1))

    x = torch.randn(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    units = active_units((model, guide), x)
    print(units.variance)
    assert units.count == 1
    assert units.variance[0] < 0.005
    assert abs(units.variance[1] - x[:, 1].var()) < 0.02
    kl = torch.tensor([4.0, 1.0 + x[:, 1].square().mean()]) / 2 + 0.5 * 0.25 - 0.5 - math.log(0.5)  # E m^2 / 2 + ...
    torch.testing.assert_close(units.kl, kl.double(), rtol=0.02, atol=0)


def test_the_kl_per_unit_needs_parents_before_the_site():
    """z2 -> z1 with a bottom-up guide: that of z1 is no closed form, that of z2 is."""

    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.5 * x, 0.8).to_event(1))
            pyro.sample("z2", dist.Normal(0.5 * z1, 0.6).to_event(1))

    x = torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert active_units((model, guide), x, site="z1").kl is None
    units = active_units((model, guide), x)
    assert units.site == "z2"  # the first in the model
    torch.testing.assert_close(units.variance, (0.25 * x).var(0), rtol=0.2, atol=0)
    kl = (0.25 * (0.25 * x.square().mean(0) + 0.64) + 0.36 - 1) / 2 - math.log(0.6)
    torch.testing.assert_close(units.kl, kl, rtol=0.02, atol=0)


@pytest.mark.parametrize("by_distribution", [False, True])
def test_masked_units_have_the_kl_of_the_elbo(by_distribution):
    """KL(N(x, 1/4) || N(0, 1)) of the rows where the mask is true, and 0 of the others."""

    def sample(loc, scale, mask):
        each = dist.Normal(loc, scale).expand([len(mask), 2])
        if by_distribution:
            pyro.sample("z", each.mask(mask[:, None]).to_event(1))
        else:
            with poutine.mask(mask=mask):
                pyro.sample("z", each.to_event(1))

    def model(x, mask):
        with pyro.plate("data", len(x)):
            sample(x.new_zeros(2), x.new_ones(()), mask)
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x), 2]).to_event(1), obs=x)

    def guide(x, mask):
        with pyro.plate("data", len(x)):
            sample(x, x.new_tensor(0.5), mask)

    x = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(30) < 10
    units = active_units((model, guide), (x, mask), batch_size=8)
    want = (mask[:, None] * (x.square() / 2 + 0.125 - 0.5 + math.log(2))).mean(0)
    torch.testing.assert_close(units.kl, want)
    if not by_distribution:  # else elbo has it from draws
        assert elbo((model, guide), (x, mask)).kl["z"] == pytest.approx(want.sum().item(), abs=1e-12)


def test_choices_are_named():
    def square(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))

    x = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"no continuous vector for each datum, only \{'z': \(2, 2\)\}; pass a pair that has one"
    ):
        active_units((square, square), x)
    with pytest.raises(ValueError, match=r"'c' is no latent that the guide samples for each datum; name one of"):
        active_units(Mixture(), x, site="c")
    with pytest.raises(ValueError, match=r"latent 'z' has event shape \(2, 2\) and is no continuous vector"):
        active_units((square, square), x, site="z")
    with pytest.raises(ValueError, match="data has one row"):
        active_units(LinearGaussian(), LinearGaussian().sample(1))


# Any pair, any data --------------------------------------------------------------------------------------------------


def test_functions_with_pyro_param():
    def model(x):
        loc = pyro.param("loc", lambda: torch.tensor(0.7, dtype=torch.float64))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        scale = pyro.param("scale", lambda: torch.tensor(0.5**0.5, dtype=torch.float64), dist.constraints.positive)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal((x + pyro.param("loc", torch.tensor(0.7).double())) / 2, scale))

    x = torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64)
    estimate = log_likelihood((model, guide), x, num_samples=10)
    torch.testing.assert_close(estimate.per_datum, dist.Normal(0.7, math.sqrt(2)).log_prob(x), rtol=0, atol=1e-7)
    assert set(pyro.get_param_store()) == {"loc", "scale"}


class Noisy(Pair):
    """Its networks behave differently in training."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
        self.decoder = nn.Linear(2, 3)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


@pytest.mark.parametrize("as_functions", [False, True])
def test_evaluation_mode_is_on_and_taken_back(as_functions, untouched):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pair, x = Noisy(), torch.randn(6, 3)
    pair.train()
    pair.encoder[1].eval()
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    given = (lambda x: pair.model(x), lambda x: pair.guide(x)) if as_functions else pair
    together = elbo(given, x).kl["z"]
    q = dist.Normal(pair.encoder[2](x / math.sqrt(1 + 1e-5)), 0.5)  # no batch statistics, no dropout
    kl = torch.distributions.kl_divergence(q, dist.Normal(0.0, 1.0)).sum(-1).mean().item()
    assert abs(together - kl) < 1e-5
    assert abs(elbo(given, x, batch_size=2).kl["z"] - kl) < 1e-5
    log_likelihood(given, x, num_samples=5)
    active_units(given, x)
    assert [pair.training, pair.encoder[0].training, pair.encoder[1].training] == [True, True, False]
    for name, value in pair.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in pair.parameters())


def test_models_that_subsample_by_themselves():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            pyro.sample("z", dist.Normal(x[rows] / 2, 0.5**0.5))

    x = torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    estimate = log_likelihood((model, guide), x, num_samples=5)
    torch.testing.assert_close(estimate.per_datum, exact, rtol=0, atol=1e-7)  # 0.5**0.5 is a float32 there
    parts = elbo((model, guide), x)
    assert abs(parts.elbo.value - (parts.reconstruction["x"] - parts.kl["z"])) < 1e-10
    assert abs(parts.elbo.value - exact.mean()) < FOUR * parts.elbo.standard_error


@pytest.mark.parametrize("batch_size", [None, 50])
def test_models_that_draw_their_rows_among_all_data_are_run_on_all_at_once(batch_size):
    """Their rows lie outside a batch of fewer."""

    def model(x):
        with pyro.plate("data", 300, subsample_size=40) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", 300, subsample_size=40) as rows:
            pyro.sample("z", dist.Normal(x[rows] / 2, 0.5**0.5))

    x = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    estimate = log_likelihood((model, guide), x, num_samples=5, batch_size=batch_size)
    torch.testing.assert_close(estimate.per_datum, exact, rtol=0, atol=1e-6)  # 0.5**0.5 is a float32 there
    with pytest.raises(ValueError, match="does not run on"):
        log_likelihood((model, guide), x[:299], num_samples=5)
    figures, _ = evaluate((model, guide), x, num_samples=5, num_replicates=5)
    assert figures["log_likelihood"] == pytest.approx(exact.mean().item(), abs=1e-6)


def test_data_keep_their_dtype_where_the_store_has_another_programs_parameters():
    x = torch.randn(5, dtype=torch.float64)
    want = log_likelihood((labelled_model, labelled_guide), x, num_samples=5).per_datum
    pyro.param("another", torch.zeros(3))
    assert torch.equal(log_likelihood((labelled_model, labelled_guide), x, num_samples=5).per_datum, want)


def test_data_take_the_dtype_of_the_pair_and_a_transform_once():
    pair = Noisy()
    seen = []

    def noise(tensors):
        seen.append(len(tensors["x"]))
        return {"x": tensors["x"] + torch.rand_like(tensors["x"])}

    data = Split({"x": torch.zeros(6, 3, dtype=torch.float64)}, transform=noise)
    first, second = (log_likelihood(pair, data, num_samples=5) for _ in range(2))
    assert seen == [6, 6]
    assert torch.equal(first.per_datum, second.per_datum)


def test_the_noise_in_x_is_not_the_noise_in_z():
    """With one seed for both, x = (u < 1/2) and z = u from the same u, and every weight knows its datum."""
    seen = []

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(x.new_zeros(4), 1.0).to_event(1))
            seen.append((x < 0.5) == (z < 0.5))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(x.new_zeros(4), 1.0).to_event(1))

    data = Split({"x": torch.zeros(50, 4)}, transform=lambda tensors: {"x": torch.rand_like(tensors["x"])})
    elbo((model, guide), data, num_particles=1)
    for run in seen:
        assert abs(run.double().mean().item() - 0.5) < FOUR * 0.5 / math.sqrt(200)


def test_any_form_of_the_data_gives_the_same():
    pair = LooseLinearGaussian()
    x = pair.sample(5)
    plain = log_likelihood(pair, x, num_samples=8).per_datum
    torch.testing.assert_close(plain, _by_hand(pair, x), rtol=0, atol=2.0)
    split, other = Split({"x": x}), Split({"x": x + 1})
    whole = Data(other, other, split), Data(other, split), Data(split)  # test, else validation, else train
    for data in ((x,), {"x": x, "y": torch.arange(5)}, split, torch.utils.data.TensorDataset(x), *whole):
        assert torch.equal(log_likelihood(pair, data, num_samples=8).per_datum, plain)


def _by_hand(pair, x):
    return (torch.logsumexp(log_weights(pair, x, num_particles=500), 0) - math.log(500)).detach()


def test_bad_input_is_told():
    pair = LinearGaussian()
    x = pair.sample(4)
    with pytest.raises(ValueError, match="num_samples is 0, at least 1 is wanted"):
        log_likelihood(pair, x, num_samples=0)
    with pytest.raises(TypeError, match=r"chunk is 2\.5, a whole number"):
        log_likelihood(pair, x, chunk=2.5)
    with pytest.raises(TypeError, match="num_particles is True"):
        elbo(pair, x, num_particles=True)
    with pytest.raises(TypeError, match="not a model with its guide"):
        elbo(nn.Linear(2, 2), x)
    grey = scoring(
        lambda z, x: pyro.sample("x", dist.Bernoulli(logits=z[..., None].expand(*z.shape, 3)).to_event(1), obs=x)
    )
    for function in (log_likelihood, elbo):
        with pytest.raises(
            ValueError, match=r"x has values that the likelihood at site 'x' cannot give: .* \[0.5, 0.5\]"
        ):
            function(grey, torch.full((4, 3), 0.5))


def test_progress_is_silent_unless_asked(capsys):
    pair = LinearGaussian()
    log_likelihood(pair, pair.sample(4), num_samples=3)
    assert capsys.readouterr() == ("", "")
    log_likelihood(pair, pair.sample(4), num_samples=3, progress=True)
    assert "4/4" in capsys.readouterr().err


def test_the_error_of_a_nested_plate_that_subsamples_is_unknown():
    """Its particles see the same visits: their spread said 0.02 where seeds are 2 nats apart."""

    def model(x, size):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("visits", 6, subsample_size=size, dim=-2) as visits:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T[visits])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x.mean(1), 0.4))

    x = 2 * torch.randn(25, 6, generator=torch.Generator().manual_seed(0))
    few = [elbo((partial(model, size=2), guide), x, num_particles=100, seed=seed).elbo for seed in range(40)]
    every = elbo((partial(model, size=None), guide), x, num_particles=2000).elbo
    values = torch.tensor([each.value for each in few])
    assert abs(values.mean() - every.value) < 4 * values.std() / len(few) ** 0.5
    assert all(math.isnan(each.standard_error) for each in few)
    assert "unknown" in str(few[0])
    assert every.standard_error < 0.02
