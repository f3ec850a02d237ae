"""The inference gap in its parts, on linear-Gaussian pairs where both are known."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian, LooseLinearGaussian, Mixture
from torch.distributions import kl_divergence

from pyrovae.evaluation.annealing import ais
from pyrovae.evaluation.gaps import gaps

FOUR = 4


class Shifted(LinearGaussian):
    """The full covariance, off in mean and scale: nothing is lost to the family."""

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, covariance = self.posterior(x)
            pyro.sample("z", dist.MultivariateNormal(loc + 0.2, 1.5 * covariance))


def best_diagonal_kl(pair, x):
    """KL(q || p(z | x)) of the diagonal Normal that has the least: mean m, variances 1 / precision_jj."""
    loc, covariance = pair.posterior(x)
    q = dist.MultivariateNormal(loc, torch.diag(1 / torch.linalg.inv(covariance).diagonal()))
    return kl_divergence(q, dist.MultivariateNormal(loc, covariance)).mean().item()


def test_a_family_that_has_the_posterior_has_no_approximation_gap(untouched):
    pair = Shifted()
    x = pair.sample(12)
    loc, covariance = (t.detach() for t in pair.posterior(x))
    lost = kl_divergence(dist.MultivariateNormal(loc + 0.2, 1.5 * covariance), dist.MultivariateNormal(loc, covariance))
    found = gaps(pair, x, num_samples=4000, batch_size=8)
    print(found, lost.mean())
    assert abs(found.approximation) < 1e-3  # the gradient has no noise there, so that the ascent arrives
    assert found.approximation_error < 1e-3
    assert abs(found.amortisation - lost.mean().item()) < FOUR * found.amortisation_error + 1e-3
    assert abs(found.log_likelihood.value - pair.log_prob(x).mean().item()) < 1e-3
    assert all(parameter.grad is None for parameter in pair.parameters())


def test_a_diagonal_family_has_the_known_one():
    pair = LooseLinearGaussian()
    x = pair.sample(12)
    found = gaps(pair, x, num_samples=4000, num_particles=16)
    family = best_diagonal_kl(pair, x)
    whole = (pair.log_prob(x) - pair.elbo(x)).mean().item()
    print(found)
    print(f"approximation {family:.4f}, amortisation {whole - family:.4f}")
    assert abs(found.approximation - family) < FOUR * found.approximation_error + 0.005  # what noise leaves undone
    assert abs(found.amortisation - (whole - family)) < FOUR * found.amortisation_error + 0.005
    assert found.approximation_error + found.amortisation_error < 0.03
    total = found.log_likelihood.value - found.amortised.value
    assert found.approximation + found.amortisation == pytest.approx(total, abs=1e-12)


def test_the_tightest_bound_is_taken():
    pair = LooseLinearGaussian()
    x = pair.sample(4)
    annealed = ais(pair, x, num_temperatures=5, num_leapfrog=2)
    found = gaps(pair, x, steps=5, num_samples=20, annealed=annealed)
    assert found.bound in ("importance", "refined")
    annealed.value += 100
    found = gaps(pair, x, steps=5, num_samples=20, annealed=annealed)
    assert found.bound == "ais"
    assert found.approximation == annealed.value - found.refined.value
    assert "log p(x) (ais)" in str(found)
    with pytest.raises(ValueError, match="annealed is of 4 rows, data have 3"):
        gaps(pair, x[:3], steps=5, num_samples=20, annealed=annealed)
    with pytest.raises(TypeError, match=r"annealed is 3.0, an Estimate is wanted; pass annealed=ais\(pair, data\)"):
        gaps(pair, x, steps=5, num_samples=20, annealed=3.0)


def test_one_number_and_enumerated_sites_of_the_model():
    x = torch.tensor([-1.0, 0.4, 2.5], dtype=torch.float64)
    found = gaps(Mixture(), x, num_samples=4000)
    assert (
        abs(found.log_likelihood.value - Mixture().log_prob(x).mean().item())
        < FOUR * found.log_likelihood.standard_error
    )
    assert found.amortisation > 0.2
    assert found.approximation > -FOUR * found.approximation_error


def test_other_guides_are_named():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(x.new_ones(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(x.new_ones(()), 1.0))

    with pytest.raises(ValueError, match="guide site 'z' is Gamma; only Normal and MultivariateNormal can be refined"):
        gaps((model, guide), torch.ones(3))
