"""The lecture notes' slips: the form that the library uses is the right one, and the slip is another number."""

import math

import pyro
import pyro.distributions as dist
import torch
from exact import LinearGaussian, LooseLinearGaussian

from pyrovae.conditionals import DiagonalNormal, FixedNormal
from pyrovae.models.hierarchical import merge
from pyrovae.objectives import ledger


def moments(q):
    return q.base_dist.loc, q.base_dist.variance


def test_the_gaussian_kl_is_not_its_negative():
    """Notes: KL = 1/2 sum (1 + log s^2 - s^2 - m^2), which is minus the KL."""
    pair = LooseLinearGaussian()
    x = pair.sample(4)
    drawn = ledger(pair, x)
    q = next(term.site["fn"] for term in drawn.terms if term.kind == "guide")
    loc, variance = moments(q)
    slip = 0.5 * (1 + variance.log() - variance - loc**2).sum(-1)
    torch.testing.assert_close(drawn.closed_form_kl()["z"][0], -slip)
    assert (slip < 0).all()


def test_the_entropy_is_added():
    """Notes: E log p(x, z) - H[q]; right is + H[q]."""
    pair = LinearGaussian()
    x = pair.sample(3)
    drawn = ledger(pair, x.repeat(20000, 1))
    log_p, _, _ = drawn.entries()
    joint = (log_p["x"] + log_p["z"]).view(20000, 3).mean(0)
    q = next(term.site["fn"] for term in drawn.terms if term.kind == "guide")
    entropy = q.entropy()[:3]
    error = (log_p["x"] + log_p["z"]).view(20000, 3).std(0) / math.sqrt(20000)
    exact = pair.log_prob(x)
    print(joint + entropy, exact, error)
    assert ((joint + entropy - exact).abs() < 4 * error).all()
    assert ((joint - entropy - exact).abs() > 4 * error).all()


def test_unit_variance_is_half_the_squared_error():
    """Notes: log p = -(x - m)^2 up to a constant; right is -(x - m)^2 / 2."""
    torch.manual_seed(0)
    likelihood = FixedNormal(3, 4).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    p = likelihood(torch.randn(2, 3, dtype=torch.float64))
    squared = ((x - p.mean) ** 2).sum(-1)
    torch.testing.assert_close(p.log_prob(x), -squared / 2 - 2 * math.log(2 * math.pi))


def test_the_head_gives_a_log_variance_not_a_log_scale():
    """Notes: N(mu, diag(exp(sigma))) with sigma for the standard deviation; here exp is of the log-variance."""
    torch.manual_seed(0)
    q = DiagonalNormal(3, 4, min_scale=0.0).double()
    features = torch.randn(2, 3, dtype=torch.float64)
    _, log_variance = q.head(features)
    torch.testing.assert_close(moments(q(features))[1], log_variance.exp())


def test_the_merged_scale_is_the_root_of_a_variance():
    """Notes: sigma_q = 1 / (sigma_q^-2 + sigma_p^-2), which is the variance of the product of two Gaussians."""
    z = torch.linspace(-30, 30, 60001, dtype=torch.float64)
    loc1, scale1, loc2, scale2 = torch.tensor([1.0, 0.5, -2.0, 2.0], dtype=torch.float64)
    weights = (dist.Normal(loc1, scale1).log_prob(z) + dist.Normal(loc2, scale2).log_prob(z)).softmax(0)
    mean = (weights * z).sum()
    variance = (weights * (z - mean) ** 2).sum()
    loc, scale = merge(loc1, scale1, loc2, scale2)
    torch.testing.assert_close(torch.stack([loc, scale**2]), torch.stack([mean, variance]))
    slip = 1 / (scale1**-2 + scale2**-2)
    torch.testing.assert_close(slip, variance)
    assert not torch.isclose(slip, scale)


def test_kls_of_layers_are_subtracted():
    """Notes: a ladder's bound with + KL; right is E log p(x | z) - KL_2 - KL_1, which stays below log p(x)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(()), 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x / 3, (2 / 3) ** 0.5))  # the exact posterior, top down
            pyro.sample("z1", dist.Normal((x + z2) / 2, 0.5**0.5))

    x = torch.tensor([0.4, -1.5], dtype=torch.float64)
    exact = dist.Normal(torch.zeros_like(x), 3**0.5).log_prob(x)
    pyro.set_rng_seed(0)
    drawn = ledger((model, guide), x.repeat(20000))
    log_p, _, _ = drawn.entries()
    kl = drawn.closed_form_kl()
    value = (log_p["x"] - kl["z2"] - kl["z1"]).view(20000, 2)
    error = value.std(0) / math.sqrt(20000)
    assert ((value.mean(0) - exact).abs() < 4 * error).all()
    slip = (log_p["x"] + kl["z2"] + kl["z1"]).view(20000, 2).mean(0)
    assert (slip > exact + 4 * error).all()


def test_the_elbo_averages_logarithms_of_weights():
    """Notes: an IWAE line with (1/k) sum w_i where (1/k) sum log w_i is meant."""
    pair = LooseLinearGaussian()
    x = pair.sample(3)
    drawn = ledger(pair, x, num_particles=50)
    weights = drawn.log_weights()
    torch.testing.assert_close(drawn.elbo(closed_form=False).mean(0), weights.mean(0))
    assert not torch.allclose(weights.mean(0), weights.exp().mean(0))


def test_the_kl_is_from_the_guide_to_the_prior():
    """Notes: a CVAE line with KL(p || q) for KL(q || p)."""
    pair = LooseLinearGaussian()
    drawn = ledger(pair, pair.sample(3))
    terms = {term.kind: term.site["fn"] for term in drawn.terms if term.name == "z"}
    q, p = terms["guide"], terms["latent"]
    torch.testing.assert_close(drawn.closed_form_kl()["z"][0], torch.distributions.kl_divergence(q, p))
    assert not torch.allclose(drawn.closed_form_kl()["z"][0], torch.distributions.kl_divergence(p, q))
