"""Tails of importance weights: exact generalised Pareto samples, known density ratios, and z drawn from the prior."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian, LooseLinearGaussian, Mixture
from test_likelihood import coins_guide, coins_model, labelled_guide, labelled_model, odd_guide, odd_model

from pyrovae.evaluation.chunks import from_prior
from pyrovae.evaluation.likelihood import log_likelihood
from pyrovae.evaluation.pareto import Tail, generalised_pareto
from pyrovae.models.base import as_pair
from pyrovae.objectives import log_weights

FOUR = 4


@pytest.mark.parametrize("k", [-0.2, 0.1, 0.5, 0.8, 1.5])
def test_exact_samples_give_shape_and_scale(k):
    """Of M samples the fit has variance (1 + k)^2 / M in k and 2 sigma^2 (1 + k) / M in sigma, for k > -1/2."""
    count, repeats, sigma = 500, 400, 2.5
    u = torch.rand(count, repeats, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shape, scale = generalised_pareto(sigma * (u**-k - 1) / k)
    sd = (1 + k) / math.sqrt(count)
    print(f"k {shape.mean():.4f} +- {shape.std():.4f} (theory {sd:.4f}), sigma {scale.mean():.4f}")
    assert abs(shape.mean() - k) < 0.1 * sd + FOUR * sd / math.sqrt(repeats)  # its bias is of order 1 / M
    assert abs(shape.std() / sd - 1) < 0.15
    assert abs(scale.mean() / sigma - 1) < 0.01 + FOUR * math.sqrt(2 * (1 + k) / count / repeats)


@pytest.mark.parametrize("scale", [0.3, 0.45, 0.7, 0.9])
def test_a_narrow_gaussian_proposal_has_a_known_tail(scale):
    """Of N(0, 1) over N(0, s^2), w = exp((1 - s^2) n^2 / 2) with n ~ N(0, 1), whose tail has k = 1 - s^2."""
    total, repeats = 40000, 50
    n = torch.randn(total, repeats, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tail = Tail(total)
    for part in ((1 - scale**2) * n**2 / 2 - 700).split(7000):  # in chunks, of weights that underflow
        tail.add(part)
    k = tail.k_hat().mean().item()
    print(f"k-hat {k:.3f}, k {1 - scale**2:.3f}")
    assert abs(k - (1 - scale**2)) < 0.1  # 1 / sqrt(log t) in front of t^(-1/k) makes a finite tail look lighter


def test_a_wide_proposal_has_bounded_weights():
    n = torch.randn(4000, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tail = Tail(4000)
    tail.add((1 - 1.5**2) * n**2 / 2)
    assert tail.k_hat().max() < 0


def test_few_or_equal_weights_have_no_tail():
    tail = Tail(20)  # of 20 four would be fitted
    tail.add(torch.randn(20, 3))
    assert tail.k_hat().isnan().all()
    pair = LinearGaussian()
    estimate = log_likelihood(pair, pair.sample(5), num_samples=100)
    assert (estimate.pareto_k == -math.inf).all()
    assert log_likelihood(pair, pair.sample(5), num_samples=1).pareto_k.isnan().all()


def k_hats(weights):
    tail = Tail(len(weights))
    tail.add(weights.log())
    return tail.k_hat()


@pytest.mark.parametrize("total", [100, 500, 1000, 4000])
def test_two_values_of_weights_have_no_heavy_tail(total):
    """1.5 for 2 % of the draws and 1 for the others, as with a latent of two classes: those of 1.5 are the tail."""
    weights = torch.ones(total, 40, dtype=torch.float64)
    weights[torch.rand(weights.shape, generator=torch.Generator().manual_seed(0)) < 0.02] = 1.5
    k, above = k_hats(weights), (weights > 1).sum(0)
    size = math.ceil(min(0.2 * total, 3 * math.sqrt(total)))
    print(f"of {size}: {above.tolist()} above, k-hat {k.tolist()}")
    assert not (k > 0).any()
    assert torch.equal(k.isnan(), (above > 0) & (above < 5))
    assert torch.equal(k == -math.inf, (above == 0) | (above > size))  # all equal


def test_tails_with_ties_are_fitted_above_the_cutoff_and_others_as_ever():
    """Of 400 weights 60 are in the tail; then more and more of them tie with the cutoff, from datum to datum."""
    weights = torch.rand(400, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) ** -0.9
    plain = weights.sort(0, descending=True).values[:61]
    excess = (plain.log() - plain[0].log()).exp()
    whole = (60 * generalised_pareto(excess[:-1] - excess[-1])[0] + 5) / 70
    assert torch.equal(k_hats(weights), whole)
    ties = 4 * torch.arange(15).repeat_interleave(2)  # 0 to 56 of the tail
    rank = weights.argsort(0, descending=True).argsort(0)
    tied = torch.where((rank >= 60 - ties) & (rank <= 60), plain[60], weights)
    found = k_hats(tied)
    for datum, count in enumerate((60 - ties).tolist()):
        alone = [w - plain[60, datum].item() for w in tied[:, datum].tolist() if w > plain[60, datum]]
        assert len(alone) == count
        if count >= 5:
            want = (count * generalised_pareto(torch.tensor(alone, dtype=torch.float64))[0] + 5) / (count + 10)
            torch.testing.assert_close(found[datum], want, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.isnan(), 60 - ties < 5)
    torch.testing.assert_close(found[ties == 0], whole[ties == 0], rtol=1e-12, atol=1e-12)


def test_heavy_tails_are_told():
    class Narrow(LinearGaussian):
        """For the first rows the guide has 0.45 of the posterior's sd, and k = 0.8."""

        narrow = 10

        def guide(self, x):
            with pyro.plate("data", len(x)):
                loc, covariance = self.posterior(x)
                factor = torch.where(torch.arange(len(x)) < self.narrow, 0.2, 1.0)[:, None, None]
                pyro.sample("z", dist.MultivariateNormal(loc, factor * covariance))

    pair = Narrow()
    x = pair.sample(20)
    few = log_likelihood(pair, x, num_samples=4000)
    assert (few.pareto_k[10:] == -math.inf).all()
    assert 5 <= few.heavy_tails <= 10
    assert few.is_reliable
    assert f"(Pareto k-hat above 0.7 for {few.heavy_tails} of 20 data, whose error is too small" in str(few)
    pair.narrow = 20
    assert not log_likelihood(pair, x, num_samples=4000).is_reliable
    loose = LooseLinearGaussian()
    assert log_likelihood(loose, x, num_samples=1000).heavy_tails == 0


# z from the prior ----------------------------------------------------------------------------------------------------


def test_the_prior_as_proposal_is_naive_monte_carlo(untouched):
    pair = LinearGaussian(data_dim=2, scale=1.5)
    x = pair.sample(6)
    estimate = log_likelihood(pair, x, num_samples=20000, proposal="prior")
    difference = estimate.value - pair.log_prob(x).mean().item()
    print(f"difference {difference:.5f}, standard error {estimate.standard_error:.5f}")
    assert abs(difference) < FOUR * estimate.standard_error
    assert 1e-4 < estimate.standard_error < 0.02
    assert estimate.ess.max() < 19000
    with torch.random.fork_rng():
        torch.manual_seed(5)
        z = torch.randn(200, 6, 2, dtype=torch.float64)
        torch.manual_seed(5)
        log_w = log_weights(from_prior(pair), x, num_particles=200)
    by_hand = dist.Normal(z @ pair.weight.T + pair.bias, pair.scale).to_event(1).log_prob(x)
    torch.testing.assert_close(log_w, by_hand)


def test_enumerated_sites_are_summed_under_the_prior_too():
    x = torch.tensor([-1.0, 0.4, 2.5], dtype=torch.float64)
    y = torch.arange(3.0, dtype=torch.float64)
    labelled = x.new_tensor([0.2, 0.5, 0.3]).log() + dist.Normal(2 * y, math.sqrt(1.64)).log_prob(x[:, None])
    for pair, exact in (
        (Mixture(), Mixture().log_prob(x)),
        # The prior draws y itself where only the guide enumerates it.
        ((labelled_model, labelled_guide), torch.logsumexp(labelled, -1)),
    ):
        estimate = log_likelihood(pair, x, num_samples=20000, proposal="prior")
        difference = estimate.value - exact.mean().item()
        print(f"difference {difference:.5f}, standard error {estimate.standard_error:.5f}")
        assert abs(difference) < FOUR * estimate.standard_error < 0.1


def test_factors_count_in_the_weight_and_auxiliary_sites_do_not_exist():
    """The factor exp(-z^2) makes of N(0, 1) a third's root of N(0, 1/3)."""
    x = torch.tensor([-1.0, 0.4, 2.5], dtype=torch.float64)
    exact = dist.Normal(0.0, math.sqrt(4 / 3)).log_prob(x).mean().item() - 0.5 * math.log(3)
    estimate = log_likelihood((odd_model, odd_guide), x, num_samples=20000, proposal="prior")
    print(f"difference {estimate.value - exact:.5f}, standard error {estimate.standard_error:.5f}")
    assert abs(estimate.value - exact) < FOUR * estimate.standard_error < 0.1


def test_nested_plates_and_enumeration_under_the_prior():
    x = torch.bernoulli(torch.full((4, 3), 0.5, dtype=torch.float64), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    guided = log_weights((coins_model, coins_guide), x, num_particles=40000)
    naive = log_weights(from_prior(as_pair((coins_model, coins_guide))), x, num_particles=40000)
    for a, b in zip(guided.T, naive.T, strict=True):
        means = [w.exp().mean().item() for w in (a, b)]
        error = math.hypot(*(w.exp().std().item() / 200 for w in (a, b)))
        print(means, error)
        assert abs(means[0] - means[1]) < FOUR * error


def test_another_proposal_is_refused():
    pair = LinearGaussian()
    with pytest.raises(ValueError, match=r"proposal is 'posterior'; pass \"guide\" or \"prior\""):
        log_likelihood(pair, pair.sample(3), proposal="posterior")
