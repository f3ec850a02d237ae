"""Annealed importance sampling and its sandwich against exact log-likelihoods."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian, LooseLinearGaussian, Mixture
from test_likelihood import OneByOne, global_guide, global_model, labelled_guide, labelled_model, odd_guide, odd_model

from pyrovae.distributions.supports import bijection
from pyrovae.evaluation.annealing import _Path, ais, bdmc
from pyrovae.evaluation.joint import Joint
from pyrovae.models.base import structure

FOUR = 4
SHORT = {"num_temperatures": 40, "num_leapfrog": 5}


def close(estimate, exact, error=0.2):
    """Within four errors of log p(x), and the bias of half a variance per datum."""
    bias = 0.5 * len(estimate.per_datum) * estimate.standard_error**2
    difference = estimate.value - exact.mean().item()
    print(f"difference {difference:.4f}, standard error {estimate.standard_error:.4f}")
    assert abs(difference) < FOUR * estimate.standard_error + bias
    assert 1e-4 < estimate.standard_error < error


def gamma_model(x):
    """z ~ Gamma(2, 3), x_m | z ~ Poisson(z) for five m in a nested plate; b has a simplex for a support."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Gamma(x.new_tensor(2.0), 3.0))
        b = pyro.sample("b", dist.Dirichlet(x.new_ones(3)))
        pyro.sample("y", dist.Categorical(b), obs=torch.zeros(len(x)))
        with pyro.plate("parts", x.size(1), dim=-2):
            e = pyro.sample("e", dist.Uniform(x.new_zeros(()), 2.0))
            pyro.sample("x", dist.Poisson(z), obs=x.T)
            pyro.sample("n", dist.Normal(e, 1.0), obs=torch.zeros_like(x.T))


def gamma_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Gamma(x.new_tensor(2.0), 3.0))
        pyro.sample("b", dist.Dirichlet(x.new_ones(3)))
        with pyro.plate("parts", x.size(1), dim=-2):
            pyro.sample("e", dist.Uniform(x.new_zeros(()), 2.0))


def coin_model(x):
    """Discrete latents only, in the guide's hands without enumeration."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(x.new_tensor([0.2, 0.5, 0.3])))
        pyro.sample("x", dist.Normal(2.0 * y, 0.8), obs=x)


def coin_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Categorical(x.new_ones(3)))


def labelled_log_prob(x):
    y = torch.arange(3.0, dtype=torch.float64)
    each = x.new_tensor([0.2, 0.5, 0.3]).log() + dist.Normal(2 * y, math.sqrt(1.64)).log_prob(x[:, None])
    return torch.logsumexp(each, -1)


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_it_is_within_its_error_of_log_p_x(start, untouched):
    pair = LooseLinearGaussian()
    x = pair.sample(20)
    close(ais(pair, x, start=start, **SHORT), pair.log_prob(x))


def test_the_exact_posterior_as_start_has_no_error():
    pair = LinearGaussian()
    x = pair.sample(5)
    estimate = ais(pair, x, start="guide", num_temperatures=5, num_leapfrog=2)
    torch.testing.assert_close(estimate.per_datum, pair.log_prob(x).detach(), rtol=0, atol=1e-9)


def test_one_temperature_is_naive_monte_carlo():
    pair = LinearGaussian(data_dim=2, scale=1.5)
    x = pair.sample(5)
    close(ais(pair, x, num_chains=4000, num_temperatures=1), pair.log_prob(x), 0.1)


def test_the_ladder_is_unbiased_however_bad():
    """E[w] = p(x) for three temperatures: the mean of 40000 weights, not of their logarithms."""
    pair = LinearGaussian(data_dim=2, scale=0.5)
    x = pair.sample(3)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        path = _Path(Joint(pair, (x,), structure(pair, x)), 3, 2, lambda: None)
        path.betas = [0.0, 0.05, 0.3, 1.0]  # uneven, else wrong increments add up too
        w = torch.exp(path.forward(40000) - pair.log_prob(x))
    mean, error = w.mean(0), w.std(0) / 200
    print(f"{mean} +- {error}")
    assert ((mean - 1).abs() < FOUR * error).all()
    assert error.max() < 0.1


def test_discrete_sites_are_summed():
    x = torch.tensor([-1.0, 0.4, 2.5, 5.0], dtype=torch.float64)
    close(ais(Mixture(), x, **SHORT), Mixture().log_prob(x))
    x = torch.tensor([-0.5, 1.0, 3.0], dtype=torch.float64)
    close(ais((labelled_model, labelled_guide), x, **SHORT), labelled_log_prob(x))


def test_discrete_latents_alone_need_no_chains():
    x = torch.tensor([-0.5, 1.0, 3.0], dtype=torch.float64)
    each = x.new_tensor([0.2, 0.5, 0.3]).log() + dist.Normal(torch.arange(3.0).double() * 2, 0.8).log_prob(x[:, None])
    estimate = ais((coin_model, coin_guide), x)
    torch.testing.assert_close(estimate.per_datum, torch.logsumexp(each, -1), rtol=0, atol=1e-6)
    assert estimate.standard_error == 0


def test_any_support_and_nested_plates():
    """p(x) = 3^2 Gamma(2 + s) / (3 + 5)^(2 + s) / prod x!, p(y) = 1/3, p(n = 0) = E N(0; e, 1)."""
    x = torch.tensor([[0, 1, 2, 0, 1], [3, 1, 0, 2, 2]], dtype=torch.float64)
    s = x.sum(1)
    exact = 2 * math.log(3) + torch.lgamma(2 + s) - (2 + s) * math.log(8) - torch.lgamma(x + 1).sum(1)
    normal = dist.Normal(0.0, 1.0)
    inside = (normal.cdf(torch.tensor(2.0).double()) - 0.5) / 2
    exact = exact - math.log(3) + 5 * inside.log()
    close(ais((gamma_model, gamma_guide), x, num_chains=100, **SHORT), exact)


def mixture_of_normals(x):
    return dist.MixtureSameFamily(
        dist.Categorical(x.new_tensor([0.3, 0.7])), dist.Normal(x.new_tensor([-1.0, 1.5]), 0.6)
    )


def mixture_of_vectors(x):
    locs = x.new_tensor([[-1.0, 0.5], [1.5, 0.5]])
    return dist.MixtureSameFamily(dist.Categorical(x.new_tensor([0.3, 0.7])), dist.Normal(locs, 0.6).to_event(1))


def mixture_of_gammas(x):
    rates = x.new_tensor([3.0, 0.8])
    return dist.MixtureSameFamily(dist.Categorical(x.new_tensor([0.3, 0.7])), dist.Gamma(x.new_tensor(2.0), rates))


def mixture_of_gammas_as_events(x):
    rates = x.new_tensor([[3.0, 0.8], [3.0, 0.8]])  # (2 entries, 2 components)
    weights = dist.Categorical(x.new_tensor([0.3, 0.7]).expand(2, 2))
    return dist.MixtureSameFamily(weights, dist.Gamma(x.new_tensor(2.0), rates)).to_event(1)


def mixture_of_uniforms(x):
    uniforms = dist.Uniform(x.new_zeros(2), 4.0)  # equal bounds, a tensor of both components
    return dist.MixtureSameFamily(dist.Categorical(x.new_tensor([0.3, 0.7])), uniforms)


MIXTURES = {
    "normals": (mixture_of_normals, lambda z: dist.Normal(z, 0.8)),
    "vectors": (mixture_of_vectors, lambda z: dist.Normal(z.sum(-1), 0.8)),
    "gammas": (mixture_of_gammas, lambda z: dist.Normal(z, 0.8)),
    "gammas as events": (mixture_of_gammas_as_events, lambda z: dist.Normal(z.sum(-1), 0.8)),
    "uniforms": (mixture_of_uniforms, lambda z: dist.Normal(z, 0.8)),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_as_prior(name):
    """Against the mean of p(x | z) over a million draws of z."""
    prior, likelihood = MIXTURES[name]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(x))
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior(x))

    x = torch.tensor([-0.5, 0.4, 2.5], dtype=torch.float64)
    torch.manual_seed(0)
    exact = likelihood(prior(x).sample((10**6, 1))).log_prob(x).logsumexp(0) - math.log(10**6)
    close(ais((model, guide), x, num_chains=100, seed=0, **SHORT), exact)
    found = bdmc((model, guide), x, num_chains=20, seed=0, **SHORT)
    assert math.isfinite(found.gap)


def test_supports_without_a_bijection_are_named():
    uniforms = dist.Uniform(torch.zeros(2), torch.tensor([1.0, 2.0]))
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), uniforms)
    with pytest.raises(ValueError, match="site 'z' is a mixture whose components have different bounds"):
        bijection("z", mixture.support)
    with pytest.raises(ValueError, match=r"site 'r' has the support Sphere.*no bijection from the reals; condition on"):
        bijection("r", dist.constraints.sphere)


def test_factors_count():
    x = torch.tensor([-1.0, 0.4, 2.5], dtype=torch.float64)
    exact = dist.Normal(0.0, math.sqrt(4 / 3)).log_prob(x) - 0.5 * math.log(3)
    close(ais((odd_model, odd_guide), x, **SHORT), exact)


def test_pairs_that_take_one_particle_at_a_time():
    pair, same = OneByOne(), LooseLinearGaussian()
    x = pair.sample(6)
    with pytest.warns(UserWarning, match="does not vectorise"):
        joint = Joint(pair, (x,), structure(pair, x), start="guide")
    points = joint.draw(3).detach()
    for one_by_one, together in zip(joint.at(points), _at(same, x, points), strict=True):
        torch.testing.assert_close(one_by_one, together)
    assert points.shape == (3, 6, 2)
    assert (points[0] != points[1]).all()


def _at(pair, x, points):
    return Joint(pair, (x,), structure(pair, x), start="guide").at(points)


def test_batches_and_seeds():
    pair = LooseLinearGaussian()
    x = pair.sample(6)
    close(ais(pair, x, batch_size=4, **SHORT), pair.log_prob(x))
    first, again, other = (ais(pair, x, num_temperatures=2, num_leapfrog=2, seed=seed).value for seed in (0, 0, 1))
    assert first == again != other


def test_models_that_subsample_by_themselves():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            pyro.sample("z", dist.Normal(x[rows] / 2, 0.5**0.5))

    x = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    close(ais((model, guide), x, num_temperatures=10, num_leapfrog=3), dist.Normal(0.0, math.sqrt(2)).log_prob(x))


def test_step_sizes_come_to_the_acceptance_asked_for_and_follow_the_scale():
    pair = LinearGaussian(scale=0.2)
    x = pair.sample(4)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        path = _Path(Joint(pair, (x,), structure(pair, x)), 200, 5, lambda: None)
        points = exact_points(pair, x, 500)
        _, accepted, _ = path._move(points, path.betas[-2], path.steps[-1])
    print(f"accepted {accepted.mean():.3f}; steps from {path.steps[0].mean():.3f} to {path.steps[-1].mean():.3f}")
    assert abs(accepted.mean() - 0.65) < 0.12
    assert path.steps[-1].mean() < 0.5 * path.steps[0].mean()


def exact_points(pair, x, num_points):
    """Draws of the exact posterior, as coordinates are."""
    loc, covariance = pair.posterior(x)
    return dist.MultivariateNormal(loc, covariance).sample((num_points,))


def test_a_step_leaves_the_posterior_as_it_is():
    """Mean and covariance of 20000 exact draws after ten long steps, of which many are refused."""
    pair = LinearGaussian()
    x = pair.sample(2)
    loc, covariance = pair.posterior(x)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        path = _Path(Joint(pair, (x,), structure(pair, x)), 2, 3, lambda: None)
        points = exact_points(pair, x, 20000)
        for _ in range(10):
            points, accepted, _ = path._move(points, 1.0, torch.full((2,), 0.4).double())
    centred = points - loc
    print(f"accepted {accepted}")
    assert 0.1 < accepted.min() <= accepted.max() < 0.95
    assert (centred.mean(0).abs() < FOUR * covariance.diagonal().sqrt() / math.sqrt(20000)).all()
    variance = centred.square().mean(0) / covariance.diagonal()
    print(f"variances {variance}")
    assert ((variance - 1).abs() < FOUR * math.sqrt(2 / 20000)).all()


def test_the_sandwich_closes_on_the_linear_gaussian_pair(untouched):
    pair = LinearGaussian()
    sandwich = bdmc(pair, pair.sample(30), num_temperatures=300, num_leapfrog=5)
    print(sandwich)
    assert sandwich.gap < 0.1
    assert sandwich.gap > -FOUR * sandwich.gap_error
    assert abs(sandwich.gap - (sandwich.upper.value - sandwich.lower.value)) < 1e-12
    assert "a gap of" in str(sandwich)


def test_the_sandwich_holds_log_p_of_the_data_it_made():
    """A short ladder: lower < log p(x) < upper in the mean over 200 data, of which the test sees x."""
    seen = []

    class Watched(LinearGaussian):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                mean = z @ self.weight.T + self.bias
                value = pyro.sample("x", dist.Normal(mean, self.scale).to_event(1), obs=x)
                seen.append(value.detach())

    pair = Watched()
    sandwich = bdmc(pair, pair.sample(200), num_temperatures=10, num_leapfrog=3, num_chains=4, batch_size=200)
    log_p = pair.log_prob(seen[-1]).mean().item()
    print(f"{sandwich}, log p(x) {log_p:.3f}")
    assert sandwich.lower.value < log_p - 0.05
    assert sandwich.upper.value > log_p + 0.05
    assert sandwich.gap < 20


def test_the_backward_weights_are_unbiased():
    """E[p(x) / w] = 1, from draws of the exact posterior, for a ladder of six."""
    pair = LinearGaussian(data_dim=2, scale=1.5)
    x = pair.sample(3)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        joint = Joint(pair, (x,), structure(pair, x))
        path = _Path(joint, 6, 2, lambda: None)
        path.betas = [0.0, 0.03, 0.1, 0.2, 0.4, 0.65, 1.0]
        inverse = torch.exp(pair.log_prob(x) - path.backward(exact_points(pair, x, 40000)))
    mean, error = inverse.mean(0), inverse.std(0) / 200
    print(f"{mean} +- {error}")
    assert ((mean - 1).abs() < FOUR * error).all()


def test_the_sandwich_with_discrete_sites_and_the_guide():
    x = torch.tensor([-1.0, 0.4, 2.5, 5.0] * 3, dtype=torch.float64)
    for pair, start in ((Mixture(), "prior"), (Mixture(), "guide"), ((coin_model, coin_guide), "prior")):
        sandwich = bdmc(pair, x, start=start, **SHORT)
        print(sandwich)
        assert -0.05 - FOUR * sandwich.gap_error < sandwich.gap < 0.2 + FOUR * sandwich.gap_error
    assert sandwich.gap == 0  # discrete latents alone


def transposed_model(x):
    """z ~ N(0, 1), x_d | z ~ N(z, 1) for three d in a nested plate, which observes the transpose."""
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("parts", x.size(1), dim=-2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)


def transposed_guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x.sum(1) / 4, 0.5))


@pytest.mark.parametrize("strided", [False, True])
def test_the_guide_is_given_the_data_of_the_model_row_by_row(strided):
    """With the exact posterior to start from, both bounds are log p(x) whatever the temperatures."""
    x = torch.zeros(3, 5, dtype=torch.float64).T if strided else torch.zeros(5, 3, dtype=torch.float64)
    sandwich = bdmc((transposed_model, transposed_guide), x, start="guide", num_temperatures=3, num_leapfrog=2)
    print(sandwich)
    assert (sandwich.upper.per_datum - sandwich.lower.per_datum).abs().max() < 1e-12
    assert sandwich.lower.per_datum.std() > 0.1
    assert not x.any(), "the data themselves are as before"


def test_what_no_data_are_made_of_is_named():
    def model(x, factor=False, obs=lambda x: x, twice=False):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=obs(x))
            if twice:
                pyro.sample("again", dist.Normal(z, 1.0), obs=x)
            if factor:
                pyro.factor("bonus", -z.square())

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    x = torch.zeros(4, dtype=torch.float64)
    for start in ("prior", "guide"):
        with pytest.raises(ValueError, match=r"factors \['bonus'\], which can't be drawn from.*ais"):
            bdmc((partial(model, factor=True), guide), x, start=start, **SHORT)
    with pytest.raises(ValueError, match=r"observed sites \['x'\] are no tensors of the batch.*pass start=\"prior\""):
        bdmc((partial(model, obs=lambda x: x + 1), guide), x, start="guide", **SHORT)
    with pytest.raises(ValueError, match=r"observed sites \['x', 'again'\] are no tensors"):
        bdmc((partial(model, twice=True), guide), x, start="guide", **SHORT)
    assert math.isfinite(bdmc((partial(model, obs=lambda x: x + 1), guide), x, **SHORT).gap)


def test_what_cannot_be_annealed_is_named():
    x = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"latent sites \['w'\] lie outside the plate 'data'"):
        ais((global_model, global_guide), x)
    with pytest.raises(ValueError, match=r"guide site 'a' is auxiliary, so q\(z \| x\) is a sum over it"):
        ais((odd_model, odd_guide), x, start="guide")
    with pytest.raises(ValueError, match="start is 'posterior'; pass"):
        ais(Mixture(), x, start="posterior")

    def model(x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(x.new_full((4,), 0.5)).to_event(1))
            pyro.sample("x", dist.Normal(b.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(x.new_full((4,), 0.5)).to_event(1))

    with pytest.raises(ValueError, match=r"latent 'b' \(Independent\) is discrete and cannot be enumerated"):
        ais((model, guide), x)


# Trajectories that diverge --------------------------------------------------------------------------------------------


def gamma_poisson(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def gamma_poisson_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.Gamma(2.0 + x, 1.5))


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_a_trajectory_that_leaves_the_numbers_is_rejected(start):
    """Under Pyro's checks of values, which raise where a leapfrog step overflows: every run of this pair met that."""
    x = torch.tensor([0.0, 1, 2, 3, 4, 6, 9, 14])
    exact = dist.GammaPoisson(2.0, 0.5).log_prob(x)
    with pyro.validation_enabled(True):
        found = ais((gamma_poisson, gamma_poisson_guide), x, num_temperatures=60, start=start, seed=0)
    assert found.value == pytest.approx(exact.mean().item(), abs=0.01 + 4 * found.standard_error)


def test_a_sum_is_not_called_too_low():
    """Of discrete latents alone: one weight, without error, whatever the number of chains."""

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(c.float(), 1.0), obs=x)

    x = torch.tensor([0.5, -1.0, 2.0])
    found = ais((model, lambda x: None), x, num_temperatures=3)
    exact = dist.Normal(torch.arange(3.0), 1.0).log_prob(x[:, None]).logsumexp(-1) - math.log(3)
    torch.testing.assert_close(found.per_datum, exact.double(), rtol=1e-6, atol=0)
    assert found.is_reliable
    assert "too low" not in str(found)
