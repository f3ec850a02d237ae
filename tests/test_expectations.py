"""Posterior expectations against the linear-Gaussian posterior and enumeration."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian, LooseLinearGaussian, Mixture
from test_likelihood import OneByOne, global_guide, global_model, labelled_guide, labelled_model

from pyrovae.evaluation.expectations import _Sums, expectation

FOUR = 4


def close(estimate, truth):
    reached = (truth * (1 - truth)).abs() > 0.01  # of a rarer tail a sample may be missing altogether
    assert reached.sum() >= 2
    sigmas = ((estimate.value - truth).abs() / estimate.standard_error)[reached]
    print(f"largest difference {sigmas.max():.2f} standard errors, of {estimate.standard_error.max():.4f} at most")
    assert sigmas.max() < FOUR


FUNCTIONS = {
    "mean": (lambda z: z["z"], lambda q: q.mean),
    "second moment": (
        lambda z: z["z"][..., 0] * z["z"][..., 1],
        lambda q: q.covariance_matrix[..., 0, 1] + q.mean.prod(-1),
    ),
    "tail": (
        lambda z: z["z"][..., 0] > 0.3,
        lambda q: 1 - dist.Normal(q.mean[..., 0], q.variance[..., 0].sqrt()).cdf(torch.tensor(0.3).double()),
    ),
    "matrix": (
        lambda z: z["z"].unsqueeze(-1).expand(*z["z"].shape, 3),
        lambda q: q.mean.unsqueeze(-1).expand(-1, 2, 3),
    ),
}


@pytest.mark.parametrize("case", FUNCTIONS)
@pytest.mark.parametrize("pair", [LooseLinearGaussian(), LinearGaussian()])
def test_moments_and_tails_of_the_linear_gaussian_posterior(case, pair, untouched):
    f, exact = FUNCTIONS[case]
    x = pair.sample(10)
    loc, covariance = (t.detach() for t in pair.posterior(x))
    estimate = expectation(pair, x, f, num_samples=4000, batch_size=7, chunk=900)
    truth = exact(dist.MultivariateNormal(loc, covariance.expand(10, 2, 2)))
    assert estimate.value.shape == estimate.standard_error.shape == truth.shape
    assert estimate.ess.shape == estimate.pareto_k.shape == (10,)
    close(estimate, truth)
    assert "posterior expectations" in str(estimate)


def test_the_error_is_honest():
    """Over 200 repeats the sd of the estimates is the reported error; an sd of 200 has a relative error of 5 %."""
    pair = LooseLinearGaussian()
    x = pair.sample(1)
    runs = [expectation(pair, x, lambda z: z["z"][..., 0] ** 2, num_samples=400, seed=seed) for seed in range(200)]
    ratio = torch.cat([r.value for r in runs]).std() / torch.cat([r.standard_error for r in runs]).mean()
    print(f"sd / error {ratio:.3f}")
    assert abs(ratio - 1) < 0.2


def test_under_the_prior():
    pair = LinearGaussian(data_dim=2, scale=1.5)
    x = pair.sample(5)
    close(expectation(pair, x, lambda z: z["z"], num_samples=5000, proposal="prior"), pair.posterior(x)[0].detach())


def test_values_that_the_guide_enumerates_are_weighed():
    """p(y | x) and E[z 1{y = 2} | x], of which the weights and z differ from one y to another."""
    x = torch.tensor([-0.5, 1.0, 3.0], dtype=torch.float64)
    y = torch.arange(3.0, dtype=torch.float64)
    each = x.new_tensor([0.2, 0.5, 0.3]).log() + dist.Normal(2 * y, math.sqrt(1.64)).log_prob(x[:, None])
    p = torch.softmax(each, -1)
    mean = (x - 4.0) / 1.64
    pair = (labelled_model, labelled_guide)
    close(expectation(pair, x, lambda v: v["y"] == 1, num_samples=3000), p[:, 1])
    close(expectation(pair, x, lambda v: v["z"] * (v["y"] == 2), num_samples=3000, chunk=1000), p[:, 2] * mean)


def test_sites_that_the_model_enumerates_are_summed_out():
    pair = Mixture(x_depends_on_c=True)
    x = torch.tensor([-1.0, 0.4, 2.5], dtype=torch.float64)
    c = torch.arange(3, dtype=x.dtype)
    prior, loc = torch.log_softmax(pair.logits.detach(), -1), pair.loc.detach()
    p = torch.softmax(prior + dist.Normal(loc + c, math.sqrt(2)).log_prob(x[:, None]), -1)
    mean = (p * (loc + x[:, None] - c) / 2).sum(-1)
    close(expectation(pair, x, lambda z: z["z"], num_samples=20000), mean)
    with pytest.raises(ValueError, match=r"f asks for latent 'c', which the guide does not sample; use one of \['z'\]"):
        expectation(pair, x, lambda z: z["c"])


def test_nested_plates_come_after_the_rows():
    """z_nm ~ N(0, 1), x_nm ~ N(z_nm, 1): E z = x / 2; a has no nested plate."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("parts", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x.movedim(1, 0))

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("parts", 3, dim=-2):
                pyro.sample("z", dist.Normal(0.4 * x.movedim(1, 0), 0.8).to_event(1))

    x = torch.randn(5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    close(expectation((model, guide), x, lambda z: z["z"], num_samples=5000), x / 2)
    assert expectation((model, guide), x, lambda z: z["a"], num_samples=1).value.shape == (5,)


def test_pairs_that_take_one_particle_at_a_time():
    pair = OneByOne()
    x = pair.sample(4)
    with pytest.warns(UserWarning, match="does not vectorise"):
        estimate = expectation(pair, x, lambda z: z["z"], num_samples=300)
    close(estimate, pair.posterior(x)[0].detach())


def test_bad_functions_are_told():
    pair = LinearGaussian()
    x = pair.sample(4)
    with pytest.raises(ValueError, match=r"f gives \(6,\) for 6 samples of 4 data; return a tensor of shape \(6, 4"):
        expectation(pair, x, lambda z: z["z"].mean((1, 2)), num_samples=6)
    with pytest.raises(ValueError, match="f gives float for"):
        expectation(pair, x, lambda z: 1.0)
    with pytest.raises(ValueError, match=r"latent sites \['w'\] lie outside the plate"):
        expectation((global_model, global_guide), x[:, 0], lambda z: z["z"])
    assert expectation(pair, x, lambda z: z["z"], num_samples=1).standard_error.isnan().all()


def test_running_sums_of_expectations_are_the_sums():
    """In parts, of weights of which the largest keeps changing."""
    log_w = 20 * torch.randn(1, 60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(1)
    f = torch.randn(1, 60, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    log_w[..., 1] /= 100
    log_w[..., 2] = -2000 * torch.arange(60.0) / 7  # the largest comes first, and what follows underflows
    sums = _Sums()
    for part, values in zip(log_w.split(7, 1), f.split(7, 1), strict=True):
        sums.add(part, values)
    w = torch.softmax(log_w[0], 0).unsqueeze(-1)
    mean = (w * f[0]).sum(0)
    error = ((w**2 * (f[0] - mean) ** 2).sum(0) * 60 / 59).sqrt()
    torch.testing.assert_close(sums.result()[0], mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(sums.result()[1], error, rtol=1e-6, atol=1e-7)
